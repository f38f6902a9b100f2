/*
 * hook_observer.c
 *	  A library that looks at parallel backup commands and refuses some: those
 *	  with more than one option.
 */
#include "postgres.h"

#include "fmgr.h"
#include "replication/parallel_backup.h"

PG_MODULE_MAGIC;

void		_PG_init(void);

static parallel_backup_hook_type prev_hook = NULL;

static void
observe(ParallelBackupCmd *cmd)
{
	if (strcmp(cmd->node.extnodename, PARALLEL_BACKUP_NODE_NAME) != 0)
		elog(ERROR, "node \"%s\"", cmd->node.extnodename);
	ereport(NOTICE, (errmsg("observed %s", cmd->name)));
	if (list_length(cmd->options) > 1)
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("more than one option")));
	if (prev_hook)
		prev_hook(cmd);
}

void
_PG_init(void)
{
	prev_hook = parallel_backup_hook;
	parallel_backup_hook = observe;
}
