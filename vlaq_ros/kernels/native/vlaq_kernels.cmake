# The library vlaq_kernels: the C++ kernels of the CPU. Python loads it with ctypes, so no headers of
# Python or torch are needed. sources.txt, which setup.py reads as well, lists the files.
include(CheckCXXCompilerFlag)
find_package(Threads REQUIRED)

set_property(DIRECTORY APPEND PROPERTY
  CMAKE_CONFIGURE_DEPENDS "${CMAKE_CURRENT_LIST_DIR}/sources.txt")
file(STRINGS "${CMAKE_CURRENT_LIST_DIR}/sources.txt" rows REGEX "^[^#]")
string(TOLOWER "${CMAKE_SYSTEM_PROCESSOR}" processor)
string(REPLACE "amd64" "x86_64" processor "${processor}")
string(REPLACE "arm64" "aarch64" processor "${processor}")

add_library(vlaq_kernels SHARED)
foreach(row IN LISTS rows)
  separate_arguments(flags UNIX_COMMAND "${row}")
  list(POP_FRONT flags source wanted_processor)
  if(NOT wanted_processor STREQUAL "any" AND NOT wanted_processor STREQUAL processor)
    continue()
  endif()
  string(REPLACE ";" " " CMAKE_REQUIRED_FLAGS "${flags}")
  string(MD5 key "${CMAKE_REQUIRED_FLAGS}")
  check_cxx_compiler_flag("" vlaq_flags_are_known_${key})
  if(vlaq_flags_are_known_${key})
    get_filename_component(name "${source}" NAME_WE)
    string(TOUPPER "${name}" name)
    target_compile_definitions(vlaq_kernels PRIVATE VLAQ_HAVE_${name})
    target_sources(vlaq_kernels PRIVATE "${CMAKE_CURRENT_LIST_DIR}/${source}")
    set_source_files_properties("${CMAKE_CURRENT_LIST_DIR}/${source}" PROPERTIES
      COMPILE_OPTIONS "${flags}")
  else()
    message(WARNING
      "${source} is left out: ${CMAKE_CXX_COMPILER} does not know ${CMAKE_REQUIRED_FLAGS}")
  endif()
  unset(CMAKE_REQUIRED_FLAGS)
endforeach()

target_compile_features(vlaq_kernels PRIVATE cxx_std_17)
set(VLAQ_OPTIMIZATION -O3 CACHE STRING "Optimization; sanitizers compile -O3 for many minutes")
target_compile_options(vlaq_kernels PRIVATE ${VLAQ_OPTIMIZATION} -Wall -Wextra -Wno-psabi -ffp-contract=off)
set_target_properties(vlaq_kernels PROPERTIES
  CXX_VISIBILITY_PRESET hidden VISIBILITY_INLINES_HIDDEN ON)
target_link_libraries(vlaq_kernels PRIVATE Threads::Threads)
target_include_directories(vlaq_kernels INTERFACE "${CMAKE_CURRENT_LIST_DIR}")
