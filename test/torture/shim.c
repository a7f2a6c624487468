// Numbers the calls that change what lies below a folder, and at one of them kills the process, tears the write, or fails. Preloaded (LD_PRELOAD) into a
// process that writes there; node reaches every one of these through libc.
//
//   TORTURE_ROOT  the folder, absolute; what lies elsewhere passes through
//   TORTURE_LOG   a file outside it: a record for each call, in order
//   TORTURE_DATA  if set, records of writes hold what was written, so that a power loss can be replayed (disk.ts)
//   TORTURE_DO    kill, tear, EIO, EACCES or ENOSPC
//   TORTURE_AT    the number of the call at which it is done, from 1. A disk that is full (ENOSPC) stays so.
//
// A record is a line: a letter, then numbers and paths below the folder. O opens for writing, o for reading (which is not numbered), W writes, S syncs,
// T truncates, R renames, U unlinks, M makes a folder, X removes one, - is a call that failed.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

enum { FILES = 65536 };

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static int ids[FILES];  // of each descriptor: which open it came of; 0 for files elsewhere
static int last_id, calls, at = -1, log_file = -1, with_data;
static const char* root;
static size_t root_length;
static const char* action = "";

__attribute__((constructor)) static void begin(void) {
  root = getenv("TORTURE_ROOT");
  if (!root) return;
  root_length = strlen(root);
  const char* log = getenv("TORTURE_LOG");
  if (log) log_file = (int)syscall(SYS_openat, AT_FDCWD, log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
  with_data = getenv("TORTURE_DATA") != NULL;
  if (getenv("TORTURE_AT")) at = atoi(getenv("TORTURE_AT"));
  if (getenv("TORTURE_DO")) action = getenv("TORTURE_DO");
}

static void put(const void* bytes, size_t length) {
  for (size_t done = 0; log_file >= 0 && done < length;) {
    long n = syscall(SYS_write, log_file, (const char*)bytes + done, length - done);
    if (n <= 0) abort();
    done += (size_t)n;
  }
}

__attribute__((format(printf, 1, 2))) static void record(const char* format, ...) {
  char line[3 * PATH_MAX];
  va_list arguments;
  va_start(arguments, format);
  int length = vsnprintf(line, sizeof line, format, arguments);
  va_end(arguments);
  put(line, (size_t)length);
}

// Takes "." and empty parts out of a path, and ".." with the part before it.
static void plain(char* path) {
  char *to = path, *from = path;
  while (*from) {
    while (*from == '/') from++;
    size_t length = strcspn(from, "/");
    if (length == 2 && !strncmp(from, "..", 2)) {
      while (to > path && *--to != '/') {}
    } else if (length > 0 && !(length == 1 && *from == '.')) {
      *to++ = '/';
      memmove(to, from, length);
      to += length;
    }
    from += length;
  }
  *to = 0;
}

// The path below the folder, "" for itself; NULL for what lies elsewhere.
static const char* below(int folder, const char* path, char* whole) {
  if (!root || !path) return NULL;
  char base[PATH_MAX] = "", link[64];
  if (path[0] != '/') {
    if (folder == AT_FDCWD) {
      if (!getcwd(base, sizeof base)) return NULL;
    } else {
      snprintf(link, sizeof link, "/proc/self/fd/%d", folder);
      ssize_t n = readlink(link, base, sizeof base - 1);
      if (n < 0) return NULL;
      base[n] = 0;
    }
  }
  snprintf(whole, 2 * PATH_MAX, "%s/%s", base, path);
  plain(whole);
  path = whole;
  if (strncmp(path, root, root_length) != 0 || (path[root_length] && path[root_length] != '/')) return NULL;
  path += root_length;
  return path[0] ? path + 1 : path;
}

static void die(void) {
  kill(getpid(), SIGKILL);
  for (;;) pause();
}

// Numbers a call. What it is to fail with, or 0.
static int next(int takes_room) {
  calls++;
  if (at < 0 || calls < at) return 0;
  if (!strcmp(action, "ENOSPC")) return takes_room ? ENOSPC : 0;
  if (calls > at) return 0;
  if (!strcmp(action, "kill")) die();
  if (!strcmp(action, "EIO")) return EIO;
  if (!strcmp(action, "EACCES")) return EACCES;
  return 0;
}

static int tears(void) { return calls == at && !strcmp(action, "tear"); }

static long failed(int code) {
  record("-\n");
  errno = code;
  return -1;
}

static int opens(int folder, const char* path, int flags, mode_t mode) {
  char whole[2 * PATH_MAX];
  const char* name = below(folder, path, whole);
  if (!name) return (int)syscall(SYS_openat, folder, path, flags, mode);
  pthread_mutex_lock(&mutex);
  int writes = (flags & O_ACCMODE) != O_RDONLY || (flags & (O_CREAT | O_TRUNC)), code = writes ? next(flags & O_CREAT) : 0;
  int fd = code ? (int)failed(code) : (int)syscall(SYS_openat, folder, path, flags, mode);
  if (fd >= 0 && fd < FILES) {
    ids[fd] = ++last_id;
    record("%c %d %d %s\n", writes ? 'O' : 'o', last_id, (flags & O_TRUNC) != 0, name);
  } else if (!code && writes) {
    int error = errno;
    failed(error);
  }
  pthread_mutex_unlock(&mutex);
  return fd;
}

#define OPEN(name)                                     \
  int name(const char* path, int flags, ...) {         \
    va_list arguments;                                 \
    va_start(arguments, flags);                        \
    mode_t mode = (mode_t)va_arg(arguments, unsigned); \
    va_end(arguments);                                 \
    return opens(AT_FDCWD, path, flags, mode);         \
  }
#define OPENAT(name)                                       \
  int name(int folder, const char* path, int flags, ...) { \
    va_list arguments;                                     \
    va_start(arguments, flags);                            \
    mode_t mode = (mode_t)va_arg(arguments, unsigned);     \
    va_end(arguments);                                     \
    return opens(folder, path, flags, mode);               \
  }
OPEN(open)
OPEN(open64)
OPENAT(openat)
OPENAT(openat64)

int close(int fd) {
  if (fd >= 0 && fd < FILES && ids[fd]) {
    pthread_mutex_lock(&mutex);
    ids[fd] = 0;
    pthread_mutex_unlock(&mutex);
  }
  return (int)syscall(SYS_close, fd);
}

static int is_ours(int fd) { return fd >= 0 && fd < FILES && ids[fd]; }

// Writes to a file below the folder; position -1 is where the file stands.
static ssize_t writes(int fd, const struct iovec* parts, int count, off_t position) {
  size_t length = 0;
  for (int i = 0; i < count; i++) length += parts[i].iov_len;
  char* bytes = malloc(length + 1);
  if (!bytes) abort();
  size_t filled = 0;
  for (int i = 0; i < count; filled += parts[i++].iov_len) memcpy(bytes + filled, parts[i].iov_base, parts[i].iov_len);
  pthread_mutex_lock(&mutex);
  int code = next(1), first = code == ENOSPC && calls == at;
  size_t most = tears() || first ? length / 2 : length;  // a disk takes what still fits
  ssize_t n;
  if (code && !(first && most > 0)) n = failed(code);
  else {
    n = position < 0 ? syscall(SYS_write, fd, bytes, most) : syscall(SYS_pwrite64, fd, bytes, most, position);
    if (n < 0) failed(errno);
    else {
      if (position < 0) position = syscall(SYS_lseek, fd, 0, SEEK_CUR) - n;
      record("W %d %lld %zd\n", ids[fd], (long long)position, with_data ? n : 0);
      if (with_data) put(bytes, (size_t)n), put("\n", 1);
    }
    if (tears()) die();
  }
  pthread_mutex_unlock(&mutex);
  free(bytes);
  return n;
}

ssize_t write(int fd, const void* bytes, size_t length) {
  if (!is_ours(fd)) return syscall(SYS_write, fd, bytes, length);
  return writes(fd, &(struct iovec){(void*)bytes, length}, 1, -1);
}
ssize_t pwrite(int fd, const void* bytes, size_t length, off_t position) {
  if (!is_ours(fd)) return syscall(SYS_pwrite64, fd, bytes, length, position);
  return writes(fd, &(struct iovec){(void*)bytes, length}, 1, position);
}
ssize_t pwrite64(int fd, const void* bytes, size_t length, off64_t position) { return pwrite(fd, bytes, length, position); }
ssize_t writev(int fd, const struct iovec* parts, int count) { return is_ours(fd) ? writes(fd, parts, count, -1) : syscall(SYS_writev, fd, parts, count); }
ssize_t pwritev(int fd, const struct iovec* parts, int count, off_t position) {
  return is_ours(fd) ? writes(fd, parts, count, position) : syscall(SYS_pwritev, fd, parts, count, position, 0L);
}
ssize_t pwritev64(int fd, const struct iovec* parts, int count, off64_t position) { return pwritev(fd, parts, count, position); }

// A call on an open file.
static int on_file(int fd, long number, const char* format, long long argument) {
  if (!is_ours(fd)) return (int)syscall(number, fd, argument);
  pthread_mutex_lock(&mutex);
  int code = next(0);
  int result = code ? -1 : (int)syscall(number, fd, argument);
  if (result < 0) result = (int)failed(code ? code : errno);
  else record(format, ids[fd], argument);
  pthread_mutex_unlock(&mutex);
  return result;
}
int fsync(int fd) { return on_file(fd, SYS_fsync, "S %d %lld\n", 0); }
int fdatasync(int fd) { return on_file(fd, SYS_fdatasync, "S %d %lld\n", 0); }
int ftruncate(int fd, off_t length) { return on_file(fd, SYS_ftruncate, "T %d %lld\n", length); }
int ftruncate64(int fd, off64_t length) { return ftruncate(fd, length); }

// A call on a name, or two.
static int on_names(int takes_room, const char* letter, int folder, const char* path, int other, const char* to, long number, long last) {
  char whole[2 * PATH_MAX], wholly[2 * PATH_MAX];
  const char *name = below(folder, path, whole), *target = below(other, to, wholly);
  int counted = name || target;
  if (counted) pthread_mutex_lock(&mutex);
  int code = counted ? next(takes_room) : 0;
  int result = code ? -1 : to ? (int)syscall(number, folder, path, other, to, last) : (int)syscall(number, folder, path, last);
  if (counted) {
    if (result < 0) failed(code ? code : errno);
    else record("%s %s%s%s\n", letter, name ? name : "", to ? "\t" : "", target ? target : "");
    pthread_mutex_unlock(&mutex);
  }
  return result;
}
int renameat(int folder, const char* path, int other, const char* to) { return on_names(0, "R", folder, path, other, to, SYS_renameat2, 0); }
int rename(const char* path, const char* to) { return renameat(AT_FDCWD, path, AT_FDCWD, to); }
int unlinkat(int folder, const char* path, int flags) {
  return on_names(0, flags & AT_REMOVEDIR ? "X" : "U", folder, path, AT_FDCWD, NULL, SYS_unlinkat, flags);
}
int unlink(const char* path) { return unlinkat(AT_FDCWD, path, 0); }
int rmdir(const char* path) { return unlinkat(AT_FDCWD, path, AT_REMOVEDIR); }
int mkdirat(int folder, const char* path, mode_t mode) { return on_names(1, "M", folder, path, AT_FDCWD, NULL, SYS_mkdirat, mode); }
int mkdir(const char* path, mode_t mode) { return mkdirat(AT_FDCWD, path, mode); }

// Other ways to write: none is used today, and none is to be used without being numbered.
static void never(const char* name) {
  fprintf(stderr, "torture: %s changes the folder, and is not numbered\n", name);
  abort();
}
int truncate64(const char* path, off64_t length) {
  char whole[2 * PATH_MAX];
  if (below(AT_FDCWD, path, whole)) never("truncate");
  return (int)syscall(SYS_truncate, path, length);
}
int link(const char* path, const char* to) {
  char whole[2 * PATH_MAX];
  if (below(AT_FDCWD, to, whole)) never("link");
  return (int)syscall(SYS_linkat, AT_FDCWD, path, AT_FDCWD, to, 0);
}
ssize_t sendfile64(int to, int from, off64_t* position, size_t length) {
  if (is_ours(to)) never("sendfile");
  return syscall(SYS_sendfile, to, from, position, length);
}
ssize_t copy_file_range(int from, off64_t* at_from, int to, off64_t* at_to, size_t length, unsigned flags) {
  if (is_ours(to)) never("copy_file_range");
  return syscall(SYS_copy_file_range, from, at_from, to, at_to, length, flags);
}
