// See glibc.h: definitions that the newer libraries' headers ask for, hidden in the addon.
#include <cstddef>
#include <new>

#if defined(__GLIBC__) && defined(__GLIBCXX__)

// glibc 2.32: whether the process has one thread; Node.js has more.
extern "C" __attribute__((visibility("hidden"))) char __libc_single_threaded;
char __libc_single_threaded = 0;

// GLIBCXX_3.4.29: what std::allocator throws where elements times their size overflow.
namespace std {
__attribute__((visibility("hidden"))) void __throw_bad_array_new_length() { throw bad_array_new_length(); }
}  // namespace std

#endif
