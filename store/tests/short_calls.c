/* Lets one call on a file below SHORT_FOLDER come back short: the SHORT_AT-th of a family (SHORT_FAMILY: write or read) does half
 * of what it was asked for; the SHORT_FAIL calls after it fail with ENOSPC. With SHORT_AT=0 it only counts. Preloaded into the
 * child of faults.rs; the number of calls is the last line on standard output. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <limits.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

static atomic_long calls;

static long number(const char *name) {
    const char *text = getenv(name);
    return text ? atol(text) : 0;
}

static int is_ours(int fd, const char *family) {
    const char *folder = getenv("SHORT_FOLDER"), *wanted = getenv("SHORT_FAMILY");
    char link[64], path[PATH_MAX];
    if (!folder || !wanted || strcmp(family, wanted) != 0) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length <= 0) return 0;
    path[length] = 0;
    return strncmp(path, folder, strlen(folder)) == 0;
}

/* How much of `asked` is done; -1: nothing, it fails. */
static ssize_t share(int fd, const char *family, size_t asked) {
    int before = errno;
    if (asked < 2 || !is_ours(fd, family)) {
        errno = before;
        return asked;
    }
    errno = before;
    long call = atomic_fetch_add(&calls, 1) + 1, at = number("SHORT_AT");
    if (at == 0 || call < at || call > at + number("SHORT_FAIL")) return asked;
    if (call == at) return asked / 2;
    errno = ENOSPC;
    return -1;
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

ssize_t write(int fd, const void *from, size_t count) {
    ssize_t most = share(fd, "write", count);
    return most < 0 ? -1 : REAL(write)(fd, from, most);
}

ssize_t pwrite(int fd, const void *from, size_t count, off_t at) {
    ssize_t most = share(fd, "write", count);
    return most < 0 ? -1 : REAL(pwrite)(fd, from, most, at);
}

ssize_t pwrite64(int fd, const void *from, size_t count, off64_t at) {
    ssize_t most = share(fd, "write", count);
    return most < 0 ? -1 : REAL(pwrite64)(fd, from, most, at);
}

ssize_t writev(int fd, const struct iovec *parts, int count) {
    size_t asked = 0;
    for (int i = 0; i < count; i++) asked += parts[i].iov_len;
    ssize_t most = share(fd, "write", asked);
    if (most < 0) return -1;
    if ((size_t)most == asked) return REAL(writev)(fd, parts, count);
    for (int i = 0; i < count; i++) {
        if (parts[i].iov_len == 0) continue;
        size_t part = parts[i].iov_len < (size_t)most ? parts[i].iov_len : (size_t)most;
        return REAL(write)(fd, parts[i].iov_base, part);
    }
    return 0;
}

ssize_t read(int fd, void *into, size_t count) {
    ssize_t most = share(fd, "read", count);
    return most < 0 ? -1 : REAL(read)(fd, into, most);
}

ssize_t pread64(int fd, void *into, size_t count, off64_t at) {
    ssize_t most = share(fd, "read", count);
    return most < 0 ? -1 : REAL(pread64)(fd, into, most, at);
}

__attribute__((destructor)) static void tell(void) {
    if (getenv("SHORT_FOLDER")) dprintf(1, "calls %ld\n", atomic_load(&calls));
}
