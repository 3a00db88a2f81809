/* Preloaded, sets a program's clock an hour forward from the moment on that the file JUMPED is there.
   Only the clock that tells the time of day, as where a machine's clock is set: libfaketime moves
   the one that measures waits as well, or else breaks Python's sleep. */

#include <errno.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static time_t jump(void)
{
    int error = errno;
    time_t seconds = access(JUMPED, F_OK) == 0 ? 3600 : 0;
    errno = error;
    return seconds;
}

int clock_gettime(clockid_t clock, struct timespec *now)
{
    int failed = syscall(SYS_clock_gettime, clock, now);
    if (!failed && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE))
        now->tv_sec += jump();
    return failed;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone)
{
    int failed = syscall(SYS_gettimeofday, now, zone);
    if (!failed)
        now->tv_sec += jump();
    return failed;
}

time_t time(time_t *now)
{
    struct timespec fine;
    clock_gettime(CLOCK_REALTIME_COARSE, &fine);
    if (now)
        *now = fine.tv_sec;
    return fine.tv_sec;
}
