/*
 * shim.c
 *	  What pgrx's bindings lack of the server, in functions of plain types.
 *
 * It is compiled with the server's own header files.  Where one of these says
 * something else than this file takes for granted, the build fails, or the
 * numbers in here are the new ones: nothing of a header file is said again in
 * Rust.  shim.rs declares these functions and says how they are to be called.
 */
#include "postgres.h"

/*
 * Port ends with fields of types that the header files of OpenSSL and GSSAPI
 * declare, which a server's header package need not bring with it.  The fields
 * that are used here come before.
 */
#undef USE_OPENSSL
#undef USE_SSL
#undef ENABLE_GSS

#include "access/timeline.h"
#include "access/xlog.h"
#include "access/xlogarchive.h"
#include "catalog/pg_language_d.h"
#include "libpq/libpq.h"
#include "libpq/libpq-be.h"
#include "miscadmin.h"
#include "postmaster/bgworker.h"
#include "postmaster/interrupt.h"
#include "replication/slot.h"
#include "storage/latch.h"
#include "storage/lwlock.h"
#include "storage/procsignal.h"
#include "storage/spin.h"
#include "tcop/dest.h"
#include "tcop/tcopprot.h"
#include "tcop/utility.h"
#include "utils/wait_event.h"
#if PG_VERSION_NUM >= 170000
#include "catalog/pg_tablespace_d.h"
#include "postmaster/walsummarizer.h"
#endif

/* --- functions and numbers */

const Oid	ppb_internal_language = INTERNALlanguageId;

const ProcessUtility_hook_type ppb_standard_process_utility = standard_ProcessUtility;

LWLock *
ppb_control_file_lock(void)
{
	return ControlFileLock;
}

SessionBackupState
ppb_backup_status(void)
{
	return get_backup_status();
}

bool
ppb_archive_is_busy(const char *file)
{
	return XLogArchiveIsBusy(file);
}

/* --- timelines */

List *
ppb_timeline_history(TimeLineID timeline)
{
	return readTimeLineHistory(timeline);
}

void
ppb_timeline_entry(const TimeLineHistoryEntry *entry, TimeLineID *timeline,
				   XLogRecPtr *begin, XLogRecPtr *end)
{
	*timeline = entry->tli;
	*begin = entry->begin;
	*end = entry->end;
}

/* --- the connection */

/* The session's socket, or a negative number */
int
ppb_socket(void)
{
	return MyProcPort == NULL ? PGINVALID_SOCKET : MyProcPort->sock;
}

/* A message into libpq's buffer, which grows as it must */
void
ppb_put_message(char type, const char *bytes, size_t length)
{
	pq_putmessage_noblock(type, bytes, length);
}

/*
 * Sends what the socket takes of libpq's buffer.  EOF where the connection is
 * lost.
 */
int
ppb_flush_if_writable(void)
{
	return pq_flush_if_writable();
}

bool
ppb_is_send_pending(void)
{
	return pq_is_send_pending();
}

/* secure_write() that does not wait: EAGAIN or EWOULDBLOCK where it would */
ssize_t
ppb_secure_write(const void *bytes, size_t length)
{
	bool		noblock = MyProcPort->noblock;
	ssize_t		count;

	MyProcPort->noblock = true;
	count = secure_write(MyProcPort, unconstify(void *, bytes), length);
	MyProcPort->noblock = noblock;
	return count;
}

/*
 * Waits until the socket takes more, or the latch is set, for as many
 * milliseconds, without an end if negative.  Returns the events,
 * WL_SOCKET_WRITEABLE, WL_LATCH_SET and WL_POSTMASTER_DEATH, none when the time
 * is over.
 */
uint32
ppb_wait_writable(long timeout)
{
	WaitEvent	event;

	ModifyWaitEvent(FeBeWaitSet, FeBeWaitSetSocketPos, WL_SOCKET_WRITEABLE, NULL);
	if (WaitEventSetWait(FeBeWaitSet, timeout, &event, 1, WAIT_EVENT_CLIENT_WRITE) != 1)
		return 0;
	return event.events;
}

/*
 * Serves process signal barriers, where the rest of a message is owed to the
 * client: nothing else may be said to it, and an error ends the process.
 */
void
ppb_serve_barriers(void)
{
	CommandDest destination = whereToSendOutput;
	bool		exit_on_error = ExitOnAnyError;

	if (!ProcSignalBarrierPending)
		return;
	whereToSendOutput = DestNone;
	ExitOnAnyError = true;
	ProcessProcSignalBarrier();
	ExitOnAnyError = exit_on_error;
	whereToSendOutput = destination;
}

/* --- incremental backups, from 17 */

#if PG_VERSION_NUM >= 170000

/*
 * No server installs backup/basebackup_incremental.h.  These are its
 * declarations, the same in 17 and 18; the linker finds the functions by name.
 */
typedef enum
{
	BACK_UP_FILE_FULLY,
	BACK_UP_FILE_INCREMENTALLY
} FileBackupMethod;
typedef struct IncrementalBackupInfo IncrementalBackupInfo;

extern IncrementalBackupInfo *CreateIncrementalBackupInfo(MemoryContext context);
extern void AppendIncrementalManifestData(IncrementalBackupInfo *info,
										  const char *data, int length);
extern void FinalizeIncrementalManifest(IncrementalBackupInfo *info);
extern void PrepareForIncrementalBackup(IncrementalBackupInfo *info,
										BackupState *state);
extern FileBackupMethod GetFileBackupMethod(IncrementalBackupInfo *info,
											const char *path,
											Oid database, Oid tablespace,
											RelFileNumber number,
											ForkNumber fork,
											unsigned segment, size_t size,
											unsigned *count,
											BlockNumber *blocks,
											unsigned *truncation_block_length);

const Oid	ppb_global_tablespace = GLOBALTABLESPACE_OID;
const Oid	ppb_default_tablespace = DEFAULTTABLESPACE_OID;

bool
ppb_summarizes_wal(void)
{
	return summarize_wal;
}

/* All of it lies in the memory context */
IncrementalBackupInfo *
ppb_increment_create(MemoryContext context)
{
	return CreateIncrementalBackupInfo(context);
}

void
ppb_increment_append_manifest(IncrementalBackupInfo *info, const char *data, int length)
{
	AppendIncrementalManifestData(info, data, length);
}

void
ppb_increment_end_manifest(IncrementalBackupInfo *info)
{
	FinalizeIncrementalManifest(info);
}

void
ppb_increment_prepare(IncrementalBackupInfo *info, BackupState *state)
{
	PrepareForIncrementalBackup(info, state);
}

/*
 * How a file goes into the backup: true if by some of its blocks, which are
 * then in "blocks", of RELSEG_SIZE elements.
 */
bool
ppb_increment_has_blocks(IncrementalBackupInfo *info, const char *path,
						 Oid database, Oid tablespace, uint32 number, int fork,
						 uint32 segment, size_t size, uint32 *count,
						 BlockNumber *blocks, uint32 *truncation_block_length)
{
	StaticAssertStmt(MAIN_FORKNUM == 0 && FSM_FORKNUM == 1 &&
					 VISIBILITYMAP_FORKNUM == 2 && INIT_FORKNUM == 3,
					 "native.rs has other numbers of forks");
	return GetFileBackupMethod(info, path, database, tablespace,
							   (RelFileNumber) number, (ForkNumber) fork,
							   segment, size, count, blocks,
							   truncation_block_length) == BACK_UP_FILE_INCREMENTALLY;
}

#endif

/* --- a process of the library's own */

/*
 * SIGTERM ends it as it ends a backend, at its next look at interrupts; SIGHUP
 * has it read the configuration; SIGINT does nothing, since there is no query
 * to cancel.  Signals are blocked until this is called.
 */
void
ppb_take_signals(void)
{
	pqsignal(SIGTERM, die);
	pqsignal(SIGHUP, SignalHandlerForConfigReload);
	pqsignal(SIGINT, SIG_IGN);
	BackgroundWorkerUnblockSignals();
}

/* The slot that this process has acquired lets WAL before this position go */
void
ppb_advance_slot(XLogRecPtr position)
{
	SpinLockAcquire(&MyReplicationSlot->mutex);
	MyReplicationSlot->data.restart_lsn = position;
	SpinLockRelease(&MyReplicationSlot->mutex);
	ReplicationSlotsComputeRequiredLSN();
}

#ifdef PPB_VALGRIND
#include <valgrind/memcheck.h>

/* Other processes have written to this memory, of whose writing valgrind knows nothing here. */
void
ppb_is_defined(const void *memory, size_t length)
{
	(void) VALGRIND_MAKE_MEM_DEFINED(memory, length);
}
#endif
