# One file of kernels/cuda by nvcc, unless it was made from the same text before:
#   cmake -DNVCC=nvcc -DSOURCE=kernels/cuda/gae.cu -DOUT=build/cuda/gae.fatbin -P native/cuda/fatbin.cmake
# Beside the fatbin lies OUT.log: what ptxas says of each kernel, and the launch bounds that each states.
cmake_minimum_required(VERSION 3.18)
get_filename_component(root ${CMAKE_CURRENT_LIST_DIR}/../.. ABSOLUTE)
get_filename_component(folder ${OUT} DIRECTORY)
set(flags -std=c++20 -O3 -lineinfo -Xptxas -v
    -gencode arch=compute_80,code=sm_80 -gencode arch=compute_90a,code=sm_90a -gencode arch=compute_80,code=compute_80)

file(GLOB headers ${root}/kernels/cuda/*.h)
set(text "${flags}")
foreach(file ${headers} ${SOURCE})
  file(SHA256 ${file} hash)
  string(APPEND text " ${hash}")
endforeach()
string(SHA256 hash "${text}")
if(EXISTS ${OUT} AND EXISTS ${OUT}.hash)
  file(READ ${OUT}.hash before)
  if(before STREQUAL hash)
    file(TOUCH_NOCREATE ${OUT})
    return()
  endif()
endif()

file(REMOVE ${OUT}.hash)
file(MAKE_DIRECTORY ${OUT}.keep)
execute_process(COMMAND ${NVCC} -fatbin ${flags} -I ${root} --keep --keep-dir ${OUT}.keep -o ${OUT} ${SOURCE}
                RESULT_VARIABLE status OUTPUT_VARIABLE said ERROR_VARIABLE said)
if(NOT status EQUAL 0)
  message(FATAL_ERROR "${NVCC} failed on ${SOURCE}:\n${said}")
endif()
file(GLOB ptx ${OUT}.keep/*.compute_90a.ptx)
file(STRINGS ${ptx} bounds REGEX "^\\.(visible \\.entry|maxntid|minnctapersm)")
list(JOIN bounds "\n" bounds)
file(WRITE ${OUT}.log "${said}${bounds}\n")
file(REMOVE_RECURSE ${OUT}.keep)
file(WRITE ${OUT}.hash ${hash})
