# nodeagent/proto/*.proto -> nodeagent/proto/*_pb2.py(i); gRPC service modules for the files that declare services.
file(GLOB PROTO_FILES CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/nodeagent/proto/*.proto)
set(PROTO_OUTPUTS)
foreach(proto ${PROTO_FILES})
  get_filename_component(name ${proto} NAME_WE)
  list(APPEND PROTO_OUTPUTS ${NODEAGENT_OUT}/nodeagent/proto/${name}_pb2.py)
endforeach()
add_custom_command(
  OUTPUT ${PROTO_OUTPUTS}
  COMMAND ${Python3_EXECUTABLE} ${CMAKE_SOURCE_DIR}/nodeagent/proto/generate.py ${CMAKE_SOURCE_DIR} ${NODEAGENT_OUT}
  DEPENDS ${PROTO_FILES} ${CMAKE_SOURCE_DIR}/nodeagent/proto/generate.py
  VERBATIM)
add_custom_target(protos ALL DEPENDS ${PROTO_OUTPUTS})
if(NOT NODEAGENT_INPLACE)
  install(DIRECTORY ${NODEAGENT_OUT}/nodeagent/proto DESTINATION nodeagent)
endif()
