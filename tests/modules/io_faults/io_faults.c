/*
 * Preloaded into a client or a server (LD_PRELOAD): files cannot be opened, read, written or synchronized.
 *
 * The file that IO_FAULTS names says what fails, as "process call error after path"; while there is no such file,
 * nothing does.  "process" is the number of the one in which it fails, 0 for any.  "call" is open, create, read, write
 * or sync; an open is one for reading, a create one for writing, or that of a directory.  "error" is an error number,
 * "after" how many such calls go well first, and "path" a part of the file's path.  What has failed once goes on
 * failing.  Each error adds a byte to a file of the same name with ".seen" behind it.
 *
 * Everything else goes on to the library behind.
 */
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#define NEXT(name) ((__typeof__(&name)) dlsym(RTLD_NEXT, #name))

static atomic_int calls;

/* Whether this call on a path is to fail, with errno set then; else errno stays as it is. */
static int
fails(const char *call, const char *path)
{
	const char *control = getenv("IO_FAULTS");
	int			saved_errno = errno;
	char		text[PATH_MAX + 64];
	char		wanted[16];
	char		part[PATH_MAX];
	int			process;
	int			error;
	int			after;
	int			fd;
	ssize_t		length;

	if (control == NULL || (fd = syscall(SYS_openat, AT_FDCWD, control, O_RDONLY | O_CLOEXEC)) < 0)
	{
		errno = saved_errno;
		return 0;
	}
	length = syscall(SYS_read, fd, text, sizeof(text) - 1);
	syscall(SYS_close, fd);
	errno = saved_errno;
	if (length <= 0)
		return 0;
	text[length] = '\0';
	if (sscanf(text, "%d %15s %d %d %4095s", &process, wanted, &error, &after, part) != 5 ||
		(process != 0 && process != getpid()) || strcmp(call, wanted) != 0 || strstr(path, part) == NULL ||
		atomic_fetch_add(&calls, 1) < after)
		return 0;

	snprintf(text, sizeof(text), "%s.seen", control);
	fd = syscall(SYS_openat, AT_FDCWD, text, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
	if (fd >= 0)
	{
		syscall(SYS_write, fd, ".", 1);
		syscall(SYS_close, fd);
	}
	errno = error;
	return 1;
}

/* The same of a descriptor. */
static int
fails_fd(const char *call, int fd)
{
	char		link[64];
	char		path[PATH_MAX];
	int			saved_errno = errno;
	ssize_t		length;

	if (getenv("IO_FAULTS") == NULL)
		return 0;
	snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
	length = readlink(link, path, sizeof(path) - 1);
	errno = saved_errno;
	if (length < 0)
		return 0;
	path[length] = '\0';
	return fails(call, path);
}

static int
fails_open(int flags, const char *path)
{
	return fails((flags & O_ACCMODE) == O_RDONLY ? "open" : "create", path);
}

#define OPEN(name) \
int \
name(const char *path, int flags, ...) \
{ \
	mode_t		mode = 0; \
	va_list		more; \
\
	va_start(more, flags); \
	if (flags & (O_CREAT | O_TMPFILE)) \
		mode = va_arg(more, mode_t); \
	va_end(more); \
	if (fails_open(flags, path)) \
		return -1; \
	return syscall(SYS_openat, AT_FDCWD, path, flags, mode); \
}

OPEN(open)
OPEN(open64)

/* A name is looked for with the directory that it is in. */
static int
fails_openat(int directory, int flags, const char *name)
{
	char		link[64];
	char		path[2 * PATH_MAX];
	int			saved_errno = errno;
	ssize_t		length;

	if (name[0] == '/' || directory == AT_FDCWD)
		return fails_open(flags, name);
	snprintf(link, sizeof(link), "/proc/self/fd/%d", directory);
	length = readlink(link, path, PATH_MAX - 1);
	errno = saved_errno;
	if (length < 0)
		return fails_open(flags, name);
	snprintf(path + length, sizeof(path) - length, "/%s", name);
	return fails_open(flags, path);
}

#define OPENAT(function) \
int \
function(int directory, const char *name, int flags, ...) \
{ \
	mode_t		mode = 0; \
	va_list		more; \
\
	va_start(more, flags); \
	if (flags & (O_CREAT | O_TMPFILE)) \
		mode = va_arg(more, mode_t); \
	va_end(more); \
	if (fails_openat(directory, flags, name)) \
		return -1; \
	return syscall(SYS_openat, directory, name, flags, mode); \
}

OPENAT(openat)
OPENAT(openat64)

int
mkdir(const char *path, mode_t mode)
{
	return fails("create", path) ? -1 : NEXT(mkdir) (path, mode);
}

ssize_t
read(int fd, void *buffer, size_t count)
{
	return fails_fd("read", fd) ? -1 : syscall(SYS_read, fd, buffer, count);
}

ssize_t
pread64(int fd, void *buffer, size_t count, off_t offset)
{
	return fails_fd("read", fd) ? -1 : syscall(SYS_pread64, fd, buffer, count, offset);
}

ssize_t
pread(int fd, void *buffer, size_t count, off_t offset)
{
	return pread64(fd, buffer, count, offset);
}

ssize_t
preadv64(int fd, const struct iovec *places, int number, off_t offset)
{
	return fails_fd("read", fd) ? -1 : syscall(SYS_preadv, fd, places, number, (long) offset, 0L);
}

ssize_t
preadv(int fd, const struct iovec *places, int number, off_t offset)
{
	return preadv64(fd, places, number, offset);
}

ssize_t
sendfile(int out, int in, off_t *offset, size_t count)
{
	return fails_fd("read", in) ? -1 : syscall(SYS_sendfile, out, in, offset, count);
}

ssize_t
sendfile64(int out, int in, off_t *offset, size_t count)
{
	return sendfile(out, in, offset, count);
}

ssize_t
write(int fd, const void *buffer, size_t count)
{
	return fails_fd("write", fd) ? -1 : syscall(SYS_write, fd, buffer, count);
}

ssize_t
writev(int fd, const struct iovec *places, int number)
{
	return fails_fd("write", fd) ? -1 : syscall(SYS_writev, fd, places, number);
}

ssize_t
pwrite64(int fd, const void *buffer, size_t count, off_t offset)
{
	return fails_fd("write", fd) ? -1 : syscall(SYS_pwrite64, fd, buffer, count, offset);
}

ssize_t
pwrite(int fd, const void *buffer, size_t count, off_t offset)
{
	return pwrite64(fd, buffer, count, offset);
}

int
fsync(int fd)
{
	return fails_fd("sync", fd) ? -1 : syscall(SYS_fsync, fd);
}

int
fdatasync(int fd)
{
	return fails_fd("sync", fd) ? -1 : syscall(SYS_fdatasync, fd);
}

int
sync_file_range(int fd, off64_t offset, off64_t count, unsigned int flags)
{
	return fails_fd("sync", fd) ? -1 : syscall(SYS_sync_file_range, fd, offset, count, flags);
}
