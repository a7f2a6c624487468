// A prebuilt addon loads where Node.js 20 itself does, on glibc 2.28 and the libstdc++ of GCC 8, though newer ones
// build it: what has a newer version there than is needed is asked for by the old one (included where it is called), or
// is the addon's own (glibc.cc).
#pragma once
#include <cstddef>

#if defined(__GLIBC__) && defined(__GLIBCXX__) && (defined(__x86_64__) || defined(__aarch64__))
#if defined(__x86_64__)
#define RLHF_GLIBC "GLIBC_2.2.5"
#else
#define RLHF_GLIBC "GLIBC_2.17"
#endif
#define RLHF_WAIT "_ZNSt18condition_variable4waitERSt11unique_lockISt5mutexE"
asm(".symver dlopen, dlopen@" RLHF_GLIBC
    "\n"  // 2.34 moved them into libc
    ".symver dlsym, dlsym@" RLHF_GLIBC
    "\n"
    ".symver " RLHF_WAIT ", " RLHF_WAIT "@GLIBCXX_3.4.11");  // 3.4.30 is the same without noexcept
#endif
