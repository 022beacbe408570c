/* Makes chosen disk calls of the process that preloads it (LD_PRELOAD) go wrong.
 *
 *   DISK_FAULTS_NAME    only descriptors whose file has this name are touched
 *   DISK_FAULTS         "CALL N KIND [TIMES],...": what becomes of the N-th such call, and of the next TIMES - 1.
 *                       CALL: pwrite fdatasync ftruncate. KIND: eio enospc short (half is written) stall (milliseconds
 *                       in DISK_FAULTS_STALL_MS, then the call is made)
 *   DISK_FAULTS_REPORT  a line "CALL N KIND" is appended to this file for each fault, before the call returns
 *
 * Calls that a program makes without the C library cannot be seen here. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static int is_meant(int fd) {
    char link[64], path[PATH_MAX];
    const char *name = getenv("DISK_FAULTS_NAME");
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0 || name == NULL) return 0;
    path[length] = 0;
    const char *slash = strrchr(path, '/');
    return slash != NULL && strcmp(slash + 1, name) == 0;
}

static void report(const char *call, long n, const char *kind) {
    char line[96];
    int length = snprintf(line, sizeof line, "%s %ld %s\n", call, n, kind);
    int fd = open(getenv("DISK_FAULTS_REPORT"), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
    if (fd < 0 || write(fd, line, length) != length) abort();
    close(fd);
}

/* Counts a call and says what must become of it: 'e' an error, in errno; 's' short; 0 nothing (any more). */
static char fault(int fd, const char *call, atomic_long *calls) {
    int kept = errno;
    if (!is_meant(fd)) return errno = kept, 0;
    long n = atomic_fetch_add(calls, 1) + 1, at, times;
    const char *list = getenv("DISK_FAULTS");
    char which[16], kind[16];
    for (; list != NULL && *list != 0; list = strchr(list, ',') ? strchr(list, ',') + 1 : NULL) {
        times = 1;
        if (sscanf(list, "%15[a-z] %ld %15[a-z] %ld", which, &at, kind, &times) < 3) abort();
        if (strcmp(which, call) != 0 || n < at || n >= at + times) continue;
        report(call, n, kind);
        if (kind[0] == 'e') errno = kind[1] == 'i' ? EIO : ENOSPC;
        if (strcmp(kind, "stall") == 0) {
            long ms = atol(getenv("DISK_FAULTS_STALL_MS"));
            struct timespec rest = {ms / 1000, ms % 1000 * 1000000};
            while (nanosleep(&rest, &rest) != 0) {}
        }
        if (kind[0] != 'e') errno = kept;
        return strcmp(kind, "stall") == 0 ? 0 : kind[0];
    }
    return errno = kept, 0;
}

#define NEXT(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

ssize_t pwrite64(int fd, const void *bytes, size_t length, off64_t offset) {
    static atomic_long calls;
    char what = fault(fd, "pwrite", &calls);
    if (what == 'e') return -1;
    return NEXT(pwrite64)(fd, bytes, what == 's' ? (length + 1) / 2 : length, offset);
}

int fdatasync(int fd) {
    static atomic_long calls;
    return fault(fd, "fdatasync", &calls) == 'e' ? -1 : NEXT(fdatasync)(fd);
}

int ftruncate64(int fd, off64_t length) {
    static atomic_long calls;
    return fault(fd, "ftruncate", &calls) == 'e' ? -1 : NEXT(ftruncate64)(fd, length);
}
