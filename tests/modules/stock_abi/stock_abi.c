/*
 * stock_abi.c
 *	  A library built against the headers of the stock server, to be loaded into
 *	  the patched one.
 *
 * Whatever an extension may hold of the server's binary interface and a patch
 * could move is looked at here with the numbers of the stock headers: NodeTags
 * (from "stock_nodetags.h", which 001_patch.pl makes of the stock headers),
 * the members of nodes, hooks.
 */
#include "postgres.h"

#include "access/xact.h"
#include "fmgr.h"
#include "nodes/extensible.h"
#include "nodes/makefuncs.h"
#include "nodes/nodeFuncs.h"
#include "nodes/replnodes.h"
#include "nodes/tidbitmap.h"
#include "optimizer/planner.h"
#include "parser/parser.h"
#include "tcop/utility.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/varlena.h"
#include "windowapi.h"

PG_MODULE_MAGIC;

PG_FUNCTION_INFO_V1(stock_abi_parse);
PG_FUNCTION_INFO_V1(stock_abi_tags);
PG_FUNCTION_INFO_V1(stock_abi_hooks);
PG_FUNCTION_INFO_V1(stock_abi_window);

void		_PG_init(void);

/* Name and number of every NodeTag in the stock headers */
typedef struct TagName
{
	int			tag;
	const char *name;
} TagName;

static const TagName tag_names[] = {
#include "stock_nodetags.h"
};

static planner_hook_type prev_planner = NULL;
static ProcessUtility_hook_type prev_utility = NULL;
static int	planned_selects = 0;
static int	utility_creates = 0;

/* PlannedStmt, Query and the tags in them, as the planner makes them */
static PlannedStmt *
count_planner(Query *parse, const char *query_string, int cursorOptions,
			  ParamListInfo boundParams)
{
	PlannedStmt *result;

	if (!IsA(parse, Query))
		elog(ERROR, "stock_abi: not a Query but tag %d", (int) nodeTag(parse));
	result = prev_planner ?
		prev_planner(parse, query_string, cursorOptions, boundParams) :
		standard_planner(parse, query_string, cursorOptions, boundParams);
	if (!IsA(result, PlannedStmt))
		elog(ERROR, "stock_abi: not a PlannedStmt but tag %d", (int) nodeTag(result));
	if (parse->commandType == CMD_SELECT && IsA(result->planTree, WindowAgg))
		planned_selects++;
	return result;
}

static void
count_utility(PlannedStmt *pstmt, const char *queryString, bool readOnlyTree,
			  ProcessUtilityContext context, ParamListInfo params,
			  QueryEnvironment *queryEnv, DestReceiver *dest, QueryCompletion *qc)
{
	if (IsA(pstmt->utilityStmt, CreateStmt))
		utility_creates++;
	if (prev_utility)
		prev_utility(pstmt, queryString, readOnlyTree, context, params,
					 queryEnv, dest, qc);
	else
		standard_ProcessUtility(pstmt, queryString, readOnlyTree, context,
								params, queryEnv, dest, qc);
}

/* An extensible node of our own */
typedef struct StockNode
{
	ExtensibleNode node;
	int			value;
} StockNode;

static void
stock_copy(ExtensibleNode *newnode, const ExtensibleNode *oldnode)
{
	((StockNode *) newnode)->value = ((const StockNode *) oldnode)->value;
}

static bool
stock_equal(const ExtensibleNode *a, const ExtensibleNode *b)
{
	return ((const StockNode *) a)->value == ((const StockNode *) b)->value;
}

static void
stock_out(StringInfo str, const ExtensibleNode *node)
{
	appendStringInfo(str, " :value %d", ((const StockNode *) node)->value);
}

static void
stock_read(ExtensibleNode *node)
{
	elog(ERROR, "stock_abi: not read");
}

static const ExtensibleNodeMethods stock_methods = {
	"stock_abi", sizeof(StockNode), stock_copy, stock_equal, stock_out, stock_read
};

void
_PG_init(void)
{
	prev_planner = planner_hook;
	planner_hook = count_planner;
	prev_utility = ProcessUtility_hook;
	ProcessUtility_hook = count_utility;
	RegisterExtensibleNodeMethods(&stock_methods);
}

static const char *
stock_name(int tag)
{
	for (int i = 0; i < lengthof(tag_names); i++)
		if (tag_names[i].tag == tag)
			return tag_names[i].name;
	elog(ERROR, "stock_abi: tag %d is not in the stock headers", tag);
}

/*
 * Whether the server prints a node under this name.  Before 16 the printing is
 * written by hand: of some nodes a part of the name ("AEXPR", "SELECT", "WHEN"),
 * of others, beside a WARNING, nothing.
 */
static bool
printed_as(const char *text, const char *name)
{
#if PG_VERSION_NUM >= 160000
	int			len = strlen(name);

	return text[0] == '{' && pg_strncasecmp(text + 1, name, len) == 0 &&
		(text[1 + len] == ' ' || text[1 + len] == '}');
#else
	char		whole[NAMEDATALEN] = "";
	char		printed[NAMEDATALEN] = "";
	int			len = 0;

	for (const char *c = name; *c && len < NAMEDATALEN - 1; c++)
		if (*c != '_')
			whole[len++] = pg_toupper((unsigned char) *c);
	len = 0;
	for (const char *c = text + 1; *c && *c != ' ' && *c != '}' && len < NAMEDATALEN - 1; c++)
		if (*c != '_')
			printed[len++] = *c;
	return text[0] == '{' && strstr(whole, printed) != NULL;
#endif
}

/*
 * Walk a raw parse tree.  The server prints a node by its own idea of the tag;
 * the name that it prints must be the one of that number in the stock headers.
 */
static bool
check_walker(Node *node, void *context)
{
	if (node == NULL)
		return false;
	switch (nodeTag(node))
	{
		case T_List:
		case T_IntList:
		case T_OidList:
		case T_Integer:
		case T_Float:
		case T_Boolean:
		case T_String:
		case T_BitString:
			break;				/* printed without a name */
		default:
			{
				char	   *text = nodeToString(node);
				const char *name = stock_name(nodeTag(node));

				if (!printed_as(text, name))
					elog(ERROR, "stock_abi: tag %d is \"%s\" in the stock headers and \"%.30s\" here",
						 (int) nodeTag(node), name, text);
				(*(int *) context)++;
			}
	}
	return raw_expression_tree_walker(node, check_walker, context);
}

/* stock_abi_parse(statement) returns the number of nodes checked */
Datum
stock_abi_parse(PG_FUNCTION_ARGS)
{
	char	   *sql = text_to_cstring(PG_GETARG_TEXT_PP(0));
	List	   *parsed = raw_parser(sql, RAW_PARSE_DEFAULT);
	ListCell   *lc;
	int			count = 0;

	foreach(lc, parsed)
	{
		RawStmt    *raw = lfirst_node(RawStmt, lc);

		check_walker(raw->stmt, &count);
	}
	PG_RETURN_INT32(count);
}

#define CHECK(what, expr) \
	do { if (!(expr)) elog(ERROR, "stock_abi: %s", what); checks++; } while (0)

/* stock_abi_tags() makes late and middle nodes by the server's own functions */
Datum
stock_abi_tags(PG_FUNCTION_ARGS)
{
	int			checks = 0;
	MemoryContext context;
	TIDBitmap  *bitmap;
	StockNode  *mine;
	StockNode  *copied;
	int			last = 0;

	CHECK("Integer", IsA(makeInteger(1), Integer));
	CHECK("Float", IsA(makeFloat(pstrdup("1")), Float));
	CHECK("Boolean", IsA(makeBoolean(true), Boolean));
	CHECK("String", IsA(makeString(pstrdup("x")), String));
	CHECK("BitString", IsA(makeBitString(pstrdup("b1")), BitString));
	CHECK("List", IsA(list_make1(NULL), List));
	CHECK("IntList", IsA(list_make1_int(1), IntList));
	CHECK("OidList", IsA(list_make1_oid(1), OidList));
#if PG_VERSION_NUM >= 160000
	CHECK("XidList", IsA(list_make1_xid(3), XidList));
#endif
	CHECK("DefElem", IsA(makeDefElem(pstrdup("x"), NULL, -1), DefElem));
	CHECK("Const", IsA(makeBoolConst(true, false), Const));

	CHECK("AllocSetContext", IsA(CurrentMemoryContext, AllocSetContext));
	context = SlabContextCreate(CurrentMemoryContext, "slab", SLAB_DEFAULT_BLOCK_SIZE, 64);
	CHECK("SlabContext", IsA(context, SlabContext));
	context = GenerationContextCreate(CurrentMemoryContext, "generation", ALLOCSET_SMALL_SIZES);
	CHECK("GenerationContext", IsA(context, GenerationContext));
#if PG_VERSION_NUM >= 170000
	context = BumpContextCreate(CurrentMemoryContext, "bump", ALLOCSET_SMALL_SIZES);
	CHECK("BumpContext", IsA(context, BumpContext));
#endif

	bitmap = tbm_create(64 * 1024, NULL);
	CHECK("TIDBitmap", IsA(bitmap, TIDBitmap));
	tbm_free(bitmap);

	/* The server knows ours by T_ExtensibleNode alone. */
	mine = (StockNode *) newNode(sizeof(StockNode), T_ExtensibleNode);
	mine->node.extnodename = "stock_abi";
	mine->value = 42;
	copied = (StockNode *) copyObjectImpl(mine);
	CHECK("copied ExtensibleNode", IsA(copied, ExtensibleNode) && copied->value == 42);
	CHECK("equal ExtensibleNode", equal(mine, copied));
	CHECK("printed ExtensibleNode",
		  strcmp(nodeToString(mine), "{EXTENSIBLENODE :extnodename stock_abi :value 42}") == 0);

	for (int i = 0; i < lengthof(tag_names); i++)
		last = Max(last, tag_names[i].tag);
#if PG_VERSION_NUM >= 160000
	CHECK("the last tag of the headers", last == T_WindowObjectData);
#else
	CHECK("the last tag of the headers", last == T_SupportRequestWFuncMonotonic);
#endif

	PG_RETURN_INT32(checks);
}

/* stock_abi_hooks() returns what the hooks have counted: planner, utility */
Datum
stock_abi_hooks(PG_FUNCTION_ARGS)
{
	PG_RETURN_TEXT_P(cstring_to_text(psprintf("%d %d", planned_selects, utility_creates)));
}

/* A window function: its context object has the very last tag */
Datum
stock_abi_window(PG_FUNCTION_ARGS)
{
	WindowObject window = PG_WINDOW_OBJECT();

	if (!WindowObjectIsValid(window))
		elog(ERROR, "stock_abi: not a WindowObjectData");
	PG_RETURN_INT64(WinGetCurrentPosition(window) + 1);
}
