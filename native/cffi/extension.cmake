# The cffi extension nodeagent.dataplane._native._engine (API mode, stable ABI), linked with the static engine.
set(ENGINE_C ${CMAKE_BINARY_DIR}/_engine.c)
set(ENGINE_HEADERS ${CMAKE_SOURCE_DIR}/native/include/nodeagent/engine.h
                   ${CMAKE_SOURCE_DIR}/native/include/nodeagent/configuration.h
                   ${CMAKE_SOURCE_DIR}/native/include/nodeagent/inbound.h
                   ${CMAKE_SOURCE_DIR}/native/include/nodeagent/dns.h
                   ${CMAKE_SOURCE_DIR}/native/include/nodeagent/telemetry.h
                   ${CMAKE_SOURCE_DIR}/native/include/nodeagent/access_format.h
                   ${CMAKE_SOURCE_DIR}/native/include/nodeagent/flows.h
                   ${CMAKE_SOURCE_DIR}/native/include/nodeagent/bpf.h)
add_custom_command(
  OUTPUT ${ENGINE_C}
  COMMAND ${Python3_EXECUTABLE} ${CMAKE_SOURCE_DIR}/native/cffi/build_engine.py ${ENGINE_C} ${ENGINE_HEADERS}
  DEPENDS ${CMAKE_SOURCE_DIR}/native/cffi/build_engine.py ${ENGINE_HEADERS}
  VERBATIM)
Python3_add_library(_engine MODULE ${ENGINE_C})
target_link_libraries(_engine PRIVATE nodeagent_native)
target_compile_definitions(_engine PRIVATE Py_LIMITED_API=0x030b0000)
target_link_options(_engine PRIVATE -Wl,--exclude-libs,ALL)
set_target_properties(_engine PROPERTIES
  SUFFIX .abi3.so
  LIBRARY_OUTPUT_DIRECTORY ${NODEAGENT_OUT}/nodeagent/dataplane/_native)
if(NOT NODEAGENT_INPLACE)
  install(TARGETS _engine DESTINATION nodeagent/dataplane/_native)
endif()
