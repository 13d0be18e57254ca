/* Loaded before libc (LD_PRELOAD) into the server under test: slow and failing syncs, and a wall clock that is off. What it
 * does is told, while it runs, by the file that FAULTS names: 8 numbers of 64 bits, then the part of a path that a synced
 * file must have (all files if empty).
 *   0 milliseconds that a sync takes longer   1 errno with which it then fails, or 0   2 how many have failed so
 *   3 seconds that the wall clock is off       4 how many syncs may still succeed before they fail
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

struct faults {
    int64_t delay_ms, error, failed, clock_s, allowed, spare[3];
    char path[192];
};

static volatile struct faults *faults;
static int (*real_clock_gettime)(clockid_t, struct timespec *);

__attribute__((constructor)) static void start(void) {
    real_clock_gettime = dlsym(RTLD_NEXT, "clock_gettime");
    const char *name = getenv("FAULTS");
    int fd = name ? open(name, O_RDWR | O_CLOEXEC) : -1;
    if (fd >= 0) {
        void *at = mmap(NULL, sizeof(struct faults), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        if (at != MAP_FAILED) faults = at;
        close(fd);
    }
}

static int concerns(int fd) {
    char link[32], path[4096];
    if (!faults->path[0]) return 1;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0) return 0;
    path[length] = 0;
    return strstr(path, (const char *)faults->path) != NULL;
}

static int fault(int fd) {
    if (!faults || !concerns(fd)) return 0;
    /* In steps, so that a test that ends the delay ends it for those who wait, too. */
    for (int64_t waited = 0; waited < faults->delay_ms; waited += 10) usleep(10000);
    if (faults->error && __atomic_sub_fetch(&faults->allowed, 1, __ATOMIC_SEQ_CST) < 0) {
        __atomic_add_fetch(&faults->failed, 1, __ATOMIC_SEQ_CST);
        return (int)faults->error;
    }
    return 0;
}

int fdatasync(int fd) {
    int failed = fault(fd);
    if (failed) { errno = failed; return -1; }
    return ((int (*)(int))dlsym(RTLD_NEXT, "fdatasync"))(fd);
}

int fsync(int fd) {
    int failed = fault(fd);
    if (failed) { errno = failed; return -1; }
    return ((int (*)(int))dlsym(RTLD_NEXT, "fsync"))(fd);
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    if (!real_clock_gettime) real_clock_gettime = dlsym(RTLD_NEXT, "clock_gettime");
    int done = real_clock_gettime(clock, now);
    if (done == 0 && clock == CLOCK_REALTIME && faults) now->tv_sec += faults->clock_s;
    return done;
}
