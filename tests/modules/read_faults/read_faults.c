/*
 * Preloaded into a server (LD_PRELOAD): reading of one file fails from one offset on.
 *
 * The file that READ_FAULTS names says what fails, as "offset sendfile read once path"; while there is
 * no such file, nothing does.  "path" is how the name of the file ends that is read.  "sendfile" and
 * "read" are error numbers for sendfile() and pread(), preadv() too, at the offset or behind it, 0 for
 * none; a call that begins before it gets what is before it.  Where "once" is 1, the first error removes the file:
 * that of pread() if it has one, else that of sendfile().  Each error adds a byte to a file of the
 * same name with ".seen" behind it.
 *
 * Everything else goes on to the kernel.
 */
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sendfile.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

struct faults
{
	long long	offset;
	int			sendfile_error;
	int			read_error;
	int			once;
	char		path[256];
};

/* Whether reading this descriptor is to fail; errno stays as it is. */
static int
is_faulty(int fd, struct faults *faults)
{
	const char *control = getenv("READ_FAULTS");
	int			saved_errno = errno;
	int			found = 0;
	FILE	   *file;

	if (control != NULL && (file = fopen(control, "r")) != NULL)
	{
		char		link[64];
		char		target[PATH_MAX];
		ssize_t		length;

		if (fscanf(file, "%lld %d %d %d %255s", &faults->offset, &faults->sendfile_error,
				   &faults->read_error, &faults->once, faults->path) == 5)
		{
			size_t		wanted = strlen(faults->path);

			snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
			length = readlink(link, target, sizeof(target));
			found = length >= (ssize_t) wanted &&
				memcmp(target + length - wanted, faults->path, wanted) == 0;
		}
		fclose(file);
	}
	errno = saved_errno;
	return found;
}

static void
leave_trace(int over)
{
	const char *control = getenv("READ_FAULTS");
	char		seen[PATH_MAX];
	FILE	   *file;

	snprintf(seen, sizeof(seen), "%s.seen", control);
	if ((file = fopen(seen, "a")) != NULL)
	{
		fputc('.', file);
		fclose(file);
	}
	if (over)
		unlink(control);
}

/*
 * How much of a read remains that ends where errors begin; -1 with errno set where it begins there.
 */
static ssize_t
before_fault(const struct faults *faults, int error, int last, off_t offset, size_t count)
{
	if (error == 0 || offset + (long long) count <= faults->offset)
		return count;
	if (offset < faults->offset)
		return faults->offset - offset;
	leave_trace(faults->once && last);
	errno = error;
	return -1;
}

ssize_t
sendfile(int out, int in, off_t *offset, size_t count)
{
	struct faults faults;

	if (offset != NULL && is_faulty(in, &faults))
	{
		ssize_t		left = before_fault(&faults, faults.sendfile_error, faults.read_error == 0, *offset, count);

		if (left < 0)
			return -1;
		count = left;
	}
	return syscall(SYS_sendfile, out, in, offset, count);
}

ssize_t
pread(int fd, void *buffer, size_t count, off_t offset)
{
	struct faults faults;

	if (is_faulty(fd, &faults))
	{
		ssize_t		left = before_fault(&faults, faults.read_error, 1, offset, count);

		if (left < 0)
			return -1;
		count = left;
	}
	return syscall(SYS_pread64, fd, buffer, count, offset);
}

ssize_t
preadv(int fd, const struct iovec *places, int number, off_t offset)
{
	struct faults faults;

	if (is_faulty(fd, &faults))
	{
		struct iovec fewer[IOV_MAX];
		size_t		count = 0;
		ssize_t		left;

		for (int i = 0; i < number; i++)
			count += places[i].iov_len;
		left = before_fault(&faults, faults.read_error, 1, offset, count);
		if (left < 0)
			return -1;
		for (int i = 0; i < number; i++)
		{
			fewer[i] = places[i];
			if (fewer[i].iov_len > (size_t) left)
				fewer[i].iov_len = left;
			left -= fewer[i].iov_len;
		}
		return syscall(SYS_preadv, fd, fewer, number, (long) offset, 0L);
	}
	return syscall(SYS_preadv, fd, places, number, (long) offset, 0L);
}

ssize_t
preadv64(int fd, const struct iovec *places, int number, off_t offset)
{
	return preadv(fd, places, number, offset);
}

ssize_t
sendfile64(int out, int in, off_t *offset, size_t count)
{
	return sendfile(out, in, offset, count);
}

ssize_t
pread64(int fd, void *buffer, size_t count, off_t offset)
{
	return pread(fd, buffer, count, offset);
}
