/*
 * Preloaded into a server (LD_PRELOAD): the clock on the wall is an hour back, as long as there is the
 * file that CLOCK_SET_BACK names.
 */
#include <dlfcn.h>
#include <errno.h>
#include <stdlib.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#define BACK 3600

/* errno stays as it is */
static int
is_set_back(void)
{
	const char *control = getenv("CLOCK_SET_BACK");
	int			saved_errno = errno;
	int			found = control != NULL && access(control, F_OK) == 0;

	errno = saved_errno;
	return found;
}

int
gettimeofday(struct timeval *restrict tv, void *restrict tz)
{
	static int	(*next) (struct timeval *restrict, void *restrict);
	int			answer;

	if (next == NULL)
		next = dlsym(RTLD_NEXT, "gettimeofday");
	answer = next(tv, tz);
	if (answer == 0 && is_set_back())
		tv->tv_sec -= BACK;
	return answer;
}

int
clock_gettime(clockid_t clock, struct timespec *ts)
{
	static int	(*next) (clockid_t, struct timespec *);
	int			answer;

	if (next == NULL)
		next = dlsym(RTLD_NEXT, "clock_gettime");
	answer = next(clock, ts);
	if (answer == 0 && clock == CLOCK_REALTIME && is_set_back())
		ts->tv_sec -= BACK;
	return answer;
}
