/* Preloaded into a process, lets the Nth system call that changes a file below a folder fail, or kills the process.

   NANOLM_FAULT_FOLDER   absolute path; only calls on files in it count
   NANOLM_FAULT_CALLS    names separated by commas, such as write,fsync; empty: all of them
   NANOLM_FAULT_AT       number of the first call that fails, from 1; 0: none, calls are only counted
   NANOLM_FAULT_LAST     number of the last call that fails
   NANOLM_FAULT_ERRNO    errno of the failing calls; 0: SIGKILL instead
   NANOLM_FAULT_SHORT    1: the first failing write writes half of its bytes
   NANOLM_FAULT_COUNTER  file of 8 bytes in which all processes count their calls

   Closing a file that was written counts only if NANOLM_FAULT_CALLS names "close": it is no call that changes a file. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

static const char *folder, *calls;
static long first, last, fault_errno, is_short;
static volatile long *counter;
static pthread_once_t once = PTHREAD_ONCE_INIT;
static __thread int busy;

static long number(const char *name) {
    const char *text = getenv(name);
    return text ? atol(text) : 0;
}

static const char *text(const char *name) {
    const char *found = getenv(name);
    return found ? strdup(found) : NULL;
}

static void setup(void) {
    folder = text("NANOLM_FAULT_FOLDER");
    calls = text("NANOLM_FAULT_CALLS");
    first = number("NANOLM_FAULT_AT");
    last = number("NANOLM_FAULT_LAST");
    fault_errno = number("NANOLM_FAULT_ERRNO");
    is_short = number("NANOLM_FAULT_SHORT");
    counter = NULL;
    const char *path = getenv("NANOLM_FAULT_COUNTER");
    int (*real_open)(const char *, int, ...) = dlsym(RTLD_NEXT, "open");
    int descriptor = path ? real_open(path, O_RDWR | O_CLOEXEC) : -1;
    if (descriptor < 0) return;
    void *mapped = mmap(NULL, sizeof(long), PROT_READ | PROT_WRITE, MAP_SHARED, descriptor, 0);
    if (mapped != MAP_FAILED) counter = mapped;
    close(descriptor);
}

/* Reads the settings again, in a process that was forked. */
void nanolm_faults_setup(void) {
    pthread_once(&once, setup);
    setup();
}

static int is_below(const char *path) {
    size_t length = strlen(folder);
    return strncmp(path, folder, length) == 0 && (path[length] == '/' || path[length] == '\0');
}

/* The absolute path of `path` relative to an open folder, without following a link at its end. */
static void absolute(int descriptor, const char *path, char *result) {
    char base[PATH_MAX] = "", link[64];
    if (path[0] != '/') {
        if (descriptor == AT_FDCWD) {
            if (!getcwd(base, sizeof base)) base[0] = '\0';
        } else {
            snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
            ssize_t length = readlink(link, base, sizeof base - 1);
            base[length > 0 ? length : 0] = '\0';
        }
    }
    snprintf(result, PATH_MAX, "%s%s%s", base, base[0] ? "/" : "", path);
}

static int fails_at(const char *call, const char *path) {
    if (!counter || !folder || !is_below(path)) return 0;
    if (!strcmp(call, "close") && !(calls && strstr(calls, "close"))) return 0;
    if (calls && *calls) {
        size_t length = strlen(call);
        const char *found = calls;
        while ((found = strstr(found, call)) &&
               ((found != calls && found[-1] != ',') || (found[length] && found[length] != ',')))
            found += 1;
        if (!found) return 0;
    }
    long now = __sync_add_and_fetch(counter, 1);
    if (first <= 0 || now < first || now > last) return 0;
    if (is_short && now == first && strcmp(call, "write") == 0) return 2;
    if (fault_errno == 0) kill(getpid(), SIGKILL);
    errno = (int)fault_errno;
    return 1;
}

static int fails(const char *call, int descriptor, const char *path) {
    if (busy) return 0;
    busy = 1;
    pthread_once(&once, setup);
    int result = 0, saved = errno;
    if (counter) {
        char full[PATH_MAX], link[64];
        if (path) {
            absolute(descriptor, path, full);
        } else {
            snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
            ssize_t length = readlink(link, full, sizeof full - 1);
            full[length > 0 ? length : 0] = '\0';
        }
        result = fails_at(call, full);
    }
    if (result != 1) errno = saved;
    busy = 0;
    return result;
}

#define REAL(name) __typeof__(&name) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)
#define WRITES(flags) (((flags) & O_ACCMODE) != O_RDONLY || ((flags) & O_CREAT))

#define OPEN(name)                                              \
    int name(const char *path, int flags, ...) {                \
        va_list rest;                                           \
        va_start(rest, flags);                                  \
        mode_t mode = va_arg(rest, mode_t);                     \
        va_end(rest);                                           \
        if (WRITES(flags) && fails("open", AT_FDCWD, path)) return -1; \
        REAL(name);                                             \
        return real(path, flags, mode);                         \
    }
OPEN(open)
OPEN(open64)

#define OPENAT(name)                                            \
    int name(int folder_descriptor, const char *path, int flags, ...) { \
        va_list rest;                                           \
        va_start(rest, flags);                                  \
        mode_t mode = va_arg(rest, mode_t);                     \
        va_end(rest);                                           \
        if (WRITES(flags) && fails("open", folder_descriptor, path)) return -1; \
        REAL(name);                                             \
        return real(folder_descriptor, path, flags, mode);      \
    }
OPENAT(openat)
OPENAT(openat64)

ssize_t write(int descriptor, const void *data, size_t size) {
    int failure = fails("write", descriptor, NULL);
    if (failure == 1) return -1;
    REAL(write);
    if (failure == 2) {
        ssize_t written = real(descriptor, data, size / 2);
        if (fault_errno == 0) kill(getpid(), SIGKILL);
        if (written > 0) return written;
        errno = (int)fault_errno;
        return -1;
    }
    return real(descriptor, data, size);
}

int close(int descriptor) {
    int is_written = calls && strstr(calls, "close") && WRITES(fcntl(descriptor, F_GETFL));
    int failure = is_written && fails("close", descriptor, NULL);
    int saved = errno;
    REAL(close);
    int result = real(descriptor);
    if (!failure) return result;
    errno = saved;
    return -1;
}

ssize_t writev(int descriptor, const struct iovec *parts, int n) {
    if (fails("write", descriptor, NULL)) return -1;
    REAL(writev);
    return real(descriptor, parts, n);
}

ssize_t pwrite64(int descriptor, const void *data, size_t size, off64_t at) {
    if (fails("write", descriptor, NULL)) return -1;
    REAL(pwrite64);
    return real(descriptor, data, size, at);
}

int fsync(int descriptor) {
    if (fails("fsync", descriptor, NULL)) return -1;
    REAL(fsync);
    return real(descriptor);
}

int fdatasync(int descriptor) {
    if (fails("fsync", descriptor, NULL)) return -1;
    REAL(fdatasync);
    return real(descriptor);
}

int ftruncate64(int descriptor, off64_t size) {
    if (fails("truncate", descriptor, NULL)) return -1;
    REAL(ftruncate64);
    return real(descriptor, size);
}

int rename(const char *from, const char *to) {
    if (fails("rename", AT_FDCWD, to)) return -1;
    REAL(rename);
    return real(from, to);
}

int renameat(int from_folder, const char *from, int to_folder, const char *to) {
    if (fails("rename", to_folder, to)) return -1;
    REAL(renameat);
    return real(from_folder, from, to_folder, to);
}

int mkdir(const char *path, mode_t mode) {
    if (fails("mkdir", AT_FDCWD, path)) return -1;
    REAL(mkdir);
    return real(path, mode);
}

int unlink(const char *path) {
    if (fails("unlink", AT_FDCWD, path)) return -1;
    REAL(unlink);
    return real(path);
}

int unlinkat(int folder_descriptor, const char *path, int flags) {
    if (fails("unlink", folder_descriptor, path)) return -1;
    REAL(unlinkat);
    return real(folder_descriptor, path, flags);
}

int rmdir(const char *path) {
    if (fails("unlink", AT_FDCWD, path)) return -1;
    REAL(rmdir);
    return real(path);
}

int flock(int descriptor, int operation) {
    if (fails("flock", descriptor, NULL)) return -1;
    REAL(flock);
    return real(descriptor, operation);
}
