# bpf/*.bpf.c -> nodeagent/dataplane/_native/*.bpf.o, ahead of time, so that a node needs neither clang nor headers.
find_program(BPF_CLANG NAMES clang clang-19 clang-16 clang-14 REQUIRED)
execute_process(COMMAND ${CMAKE_C_COMPILER} -print-multiarch OUTPUT_VARIABLE MULTIARCH OUTPUT_STRIP_TRAILING_WHITESPACE)
file(GLOB BPF_SOURCES CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/bpf/*.bpf.c)
file(GLOB BPF_HEADERS CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/bpf/include/*.h)
set(BPF_OUT ${NODEAGENT_OUT}/nodeagent/dataplane/_native)
set(BPF_OBJECTS)
foreach(source ${BPF_SOURCES})
  get_filename_component(name ${source} NAME_WLE)
  set(object ${BPF_OUT}/${name}.o)
  add_custom_command(
    OUTPUT ${object}
    COMMAND ${BPF_CLANG} -O2 -g -Wall -Wextra -Werror -target bpf -mcpu=v3 -I${CMAKE_SOURCE_DIR}/bpf/include
            -I/usr/include/${MULTIARCH} -c ${source} -o ${object}
    DEPENDS ${source} ${BPF_HEADERS}
    VERBATIM)
  list(APPEND BPF_OBJECTS ${object})
endforeach()
add_custom_target(bpf_objects ALL DEPENDS ${BPF_OBJECTS})
if(NOT NODEAGENT_INPLACE)
  install(FILES ${BPF_OBJECTS} DESTINATION nodeagent/dataplane/_native)
endif()
