/* Preloaded, it moves the wall clock of one process by the seconds in the file CLOCK_SHIFT, which may change at any
 * time. Waits for a moment of the wall clock (librdkafka's) move along, as they do when a device's clock is set: one
 * that is set back makes them longer. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <threads.h>
#include <time.h>
#include <unistd.h>

#define LOOK_AGAIN 50000000 /* nanoseconds */

static volatile int64_t *shift;
static int (*wait_until)(cnd_t *, mtx_t *, const struct timespec *);

__attribute__((constructor)) static void open_shift(void) {
    int file = open(getenv("CLOCK_SHIFT"), O_RDONLY | O_CLOEXEC);
    void *map = mmap(NULL, sizeof *shift, PROT_READ, MAP_SHARED, file, 0);
    if (file < 0 || map == MAP_FAILED)
        abort();
    close(file);
    wait_until = dlsym(RTLD_NEXT, "cnd_timedwait");
    shift = map;
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    int failed = syscall(SYS_clock_gettime, clock, now);
    if (!failed && shift && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE))
        now->tv_sec += *shift;
    return failed;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    struct timespec wall;
    (void)zone;
    clock_gettime(CLOCK_REALTIME, &wall);
    now->tv_sec = wall.tv_sec;
    now->tv_usec = wall.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *now) {
    struct timespec wall;
    clock_gettime(CLOCK_REALTIME, &wall);
    if (now)
        *now = wall.tv_sec;
    return wall.tv_sec;
}

int cnd_timedwait(cnd_t *condition, mtx_t *mutex, const struct timespec *until) {
    for (;;) {
        struct timespec right = *until, look;
        right.tv_sec -= *shift;
        syscall(SYS_clock_gettime, CLOCK_REALTIME, &look);
        look.tv_nsec += LOOK_AGAIN;
        look.tv_sec += look.tv_nsec / 1000000000;
        look.tv_nsec %= 1000000000;
        int last = right.tv_sec < look.tv_sec || (right.tv_sec == look.tv_sec && right.tv_nsec <= look.tv_nsec);
        int result = wait_until(condition, mutex, last ? &right : &look);
        if (result != thrd_timedout || last)
            return result;
    }
}
