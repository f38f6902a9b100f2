use super::*;
use crate::frame::Compression;

const ID: &str = "00112233445566778899aabbccddeeff";

fn word(name: &str, value: &str) -> RawOption {
    RawOption { name: name.into(), value: Some(RawValue::Text(value.into())) }
}

fn number(name: &str, value: i64) -> RawOption {
    RawOption { name: name.into(), value: Some(RawValue::Integer(value)) }
}

fn flag(name: &str) -> RawOption {
    RawOption { name: name.into(), value: None }
}

fn file(path: &str, options: Vec<RawOption>) -> RawFile {
    RawFile { path: path.into(), options }
}

fn start(options: Vec<RawOption>) -> Result<StartBackup, CommandError> {
    match Command::parse(CommandKind::StartBackup, vec![], options)? {
        Command::StartBackup(command) => Ok(command),
        other => panic!("parsed {other:?}"),
    }
}

fn content(files: Vec<RawFile>, options: Vec<RawOption>) -> Result<SendFilesContent, CommandError> {
    match Command::parse(CommandKind::SendFilesContent, files, options)? {
        Command::SendFilesContent(command) => Ok(command),
        other => panic!("parsed {other:?}"),
    }
}

#[test]
fn defaults() {
    assert_eq!(start(vec![]), Ok(StartBackup::default()));
    assert_eq!(
        Command::parse(CommandKind::StopBackup, vec![], vec![]),
        Ok(Command::StopBackup(StopBackup::default()))
    );
}

/// START_BACKUP with BACKUP_ID and STOP_BACKUP with RELEASE, which say nothing else.
#[test]
fn attach_and_release() {
    let id: BackupId = ID.parse().unwrap();
    let parse = |kind, options| Command::parse(kind, vec![], options);
    let (begin, end) = (CommandKind::StartBackup, CommandKind::StopBackup);
    assert_eq!(parse(begin, vec![word("backup_id", ID)]), Ok(Command::Attach(id)));
    assert_eq!(parse(end, vec![flag("release")]), Ok(Command::Release(None)));
    let named = vec![word("backup_id", ID), word("release", "on")];
    assert_eq!(parse(end, named), Ok(Command::Release(Some(id))));
    let not_now = parse(end, vec![word("release", "off"), word("wait", "off")]);
    assert_eq!(not_now, Ok(Command::StopBackup(StopBackup { wait: false, ..StopBackup::default() })));
    for command in [Command::Attach(id), Command::Release(None), Command::Release(Some(id))] {
        assert!(String::from_utf8(command.to_bytes()).unwrap().starts_with(command.kind().name()));
    }
    let refused = |kind, options| {
        let error = parse(kind, options).unwrap_err();
        (error.sqlstate(), error.to_string())
    };
    assert_eq!(
        refused(begin, vec![flag("progress"), word("backup_id", ID)]),
        (SqlState::SYNTAX_ERROR, "option \"progress\" cannot be used with BACKUP_ID".to_owned())
    );
    assert_eq!(
        refused(end, vec![flag("release"), word("wait", "off")]),
        (SqlState::SYNTAX_ERROR, "option \"wait\" cannot be used with RELEASE".to_owned())
    );
    assert_eq!(refused(begin, vec![word("backup_id", "x")]).0, SqlState::UNDEFINED_OBJECT);
}

#[test]
fn leases() {
    let lease = |option: RawOption| start(vec![option]).map(|command| command.lease);
    assert_eq!(lease(flag("progress")), Ok(None));
    assert_eq!(lease(number("lease", 0)), Ok(Some(0)));
    assert_eq!(lease(word("lease", "2147483647")), Ok(Some(i32::MAX as u32)));
    for wrong in ["-1", "2147483648"] {
        let error = lease(word("lease", wrong)).unwrap_err();
        assert_eq!(error.sqlstate(), SqlState::INVALID_PARAMETER_VALUE);
        assert_eq!(error.to_string(), format!("{wrong} is outside the valid range for parameter \"lease\""));
    }
    for wrong in ["", "00112233445566778899aabbccddeef", "x"] {
        let error = start(vec![word("new_backup_id", wrong)]).unwrap_err();
        assert_eq!(error.sqlstate(), SqlState::SYNTAX_ERROR);
        assert_eq!(error.to_string(), "new_backup_id requires 32 hexadecimal digits");
    }
    for wrong in [flag("lease"), word("lease", "1h")] {
        assert_eq!(lease(wrong).unwrap_err().sqlstate(), SqlState::SYNTAX_ERROR);
    }
}

#[test]
fn process_ids() {
    let pids = |value: RawOption| -> Result<Vec<u32>, CommandError> {
        match Command::parse(CommandKind::StopBackup, vec![], vec![value])? {
            Command::StopBackup(command) => Ok(command.terminate_transfers),
            other => panic!("parsed {other:?}"),
        }
    };
    assert_eq!(pids(word("terminate_transfers", "12, 34,5")), Ok(vec![12, 34, 5]));
    assert_eq!(pids(number("terminate_transfers", 12)), Ok(vec![12]));
    assert_eq!(pids(word("terminate_transfers", "")), Ok(vec![]));
    for wrong in ["0", "-1", "1,", "1 2", "2147483648", "x"] {
        let error = pids(word("terminate_transfers", wrong)).unwrap_err();
        assert_eq!(error.sqlstate(), SqlState::SYNTAX_ERROR);
        assert_eq!(error.to_string(), "terminate_transfers requires a list of process IDs", "{wrong}");
    }
    assert!(pids(flag("terminate_transfers")).is_err());
}

#[test]
fn all_options_of_start_backup() {
    let command = start(vec![
        word("label", "my label"),
        word("checkpoint", "FAST"),
        flag("progress"),
        word("verify_checksums", "off"),
        number("max_rate", 32),
        flag("incremental"),
        word("lease", "300"),
        flag("light_lease"),
        word("new_backup_id", ID),
    ]);
    assert_eq!(
        command,
        Ok(StartBackup {
            label: b"my label".to_vec(),
            checkpoint: Checkpoint::Fast,
            progress: true,
            verify_checksums: false,
            max_rate: Some(32),
            incremental: true,
            lease: Some(300),
            light_lease: true,
            new_backup_id: ID.parse().ok(),
        })
    );
}

#[test]
fn refusals_have_code_and_words() {
    let refused = |options, code: SqlState, words: &str| {
        let error = start(options).unwrap_err();
        assert_eq!((error.sqlstate(), error.to_string().as_str()), (code, words));
    };
    refused(vec![flag("lable")], SqlState::SYNTAX_ERROR, "unrecognized START_BACKUP option: \"lable\"");
    refused(
        vec![flag("progress"), flag("progress")],
        SqlState::SYNTAX_ERROR,
        "duplicate option \"progress\"",
    );
    refused(vec![flag("label")], SqlState::SYNTAX_ERROR, "label requires a parameter");
    refused(vec![number("progress", 2)], SqlState::SYNTAX_ERROR, "progress requires a Boolean value");
    refused(
        vec![word("checkpoint", "slow")],
        SqlState::SYNTAX_ERROR,
        "unrecognized checkpoint type: \"slow\"",
    );
    for rate in [0, 31, 1_048_577, -1] {
        refused(
            vec![number("max_rate", rate)],
            SqlState::NUMERIC_VALUE_OUT_OF_RANGE,
            &format!("{rate} is outside the valid range for parameter \"MAX_RATE\" (32 .. 1048576)"),
        );
    }
}

#[test]
fn files_and_ranges() {
    let command = content(
        vec![
            file("base/5/1", vec![]),
            file("base/5/2", vec![word("offset", "8192")]),
            file("base/5/3", vec![number("offset", 0), word("length", "17179869184")]),
            file("base/5/4", vec![word("blocks", "0-3,7")]),
            file("base/5/5", vec![word("blocks", "")]),
            file("base/5/6", vec![number("blocks", 7)]),
        ],
        vec![word("backup_id", ID), word("file_checksum", "sha256"), word("compression", "lz4")],
    )
    .unwrap();
    let extents: Vec<_> = command.files.into_iter().map(|file| file.extent).collect();
    let blocks = |text: &str| Extent::Blocks(BlockList::parse(text.as_bytes()).unwrap());
    assert_eq!(
        extents,
        [
            Extent::Whole,
            Extent::Range(Range { offset: 8192, length: None }),
            Extent::Range(Range { offset: 0, length: Some(1 << 34) }),
            blocks("0-3,7"),
            blocks(""),
            blocks("7"),
        ]
    );
    assert_eq!(command.file_checksum, ChecksumAlgorithm::Sha256);
    assert_eq!(command.compression.algorithm, Compression::Lz4);
}

#[test]
fn refusals_of_files() {
    let code = |files, options| content(files, options).unwrap_err().sqlstate();
    assert_eq!(code(vec![], vec![]), SqlState::SYNTAX_ERROR);
    assert_eq!(code(vec![file("/etc/passwd", vec![])], vec![]), SqlState::INVALID_NAME);
    assert_eq!(
        code(vec![file("a", vec![word("offset", "-8192")])], vec![]),
        SqlState::INVALID_PARAMETER_VALUE
    );
    assert_eq!(code(vec![file("a", vec![word("offset", "x")])], vec![]), SqlState::SYNTAX_ERROR);
    assert_eq!(
        code(vec![file("a", vec![word("offset", "99999999999999999999")])], vec![]),
        SqlState::INVALID_PARAMETER_VALUE
    );
    assert_eq!(code(vec![file("a", vec![word("length", "1")])], vec![]), SqlState::SYNTAX_ERROR);
    for options in [
        vec![flag("blocks")],
        vec![word("blocks", "3-1")],
        vec![word("blocks", "1"), word("offset", "0")],
        vec![word("length", "0"), word("blocks", "1")],
        vec![word("blocks", "1"), word("blocks", "2")],
    ] {
        assert_eq!(code(vec![file("a", options)], vec![]), SqlState::SYNTAX_ERROR);
    }
    assert_eq!(code(vec![file("a", vec![])], vec![word("backup_id", "x")]), SqlState::UNDEFINED_OBJECT);
    assert_eq!(code(vec![file("a", vec![])], vec![word("file_checksum", "md5")]), SqlState::SYNTAX_ERROR);
}

#[test]
#[cfg_attr(miri, ignore = "volume alone: megabytes of text")]
fn most_files_and_blocks_of_a_request() {
    let code = |files, options| content(files, options).unwrap_err().sqlstate();
    let long = |bytes: usize| file("a", vec![word("blocks", &"1".repeat(bytes))]);
    assert_eq!(code(vec![long(MAX_BLOCK_LISTS)], vec![]), SqlState::SYNTAX_ERROR);
    assert_eq!(code(vec![long(MAX_BLOCK_LISTS + 1)], vec![]), SqlState::PROGRAM_LIMIT_EXCEEDED);
    // That of all lists together.
    let list = (0..150_000).map(|block| block.to_string()).collect::<Vec<_>>().join(",");
    let one = || file("a", vec![word("blocks", &list)]);
    assert!(content(vec![one()], vec![]).is_ok());
    assert_eq!(code(vec![one(), one()], vec![]), SqlState::PROGRAM_LIMIT_EXCEEDED);
    let many = |n| (0..n).map(|i| file(&format!("f{i}"), vec![])).collect::<Vec<_>>();
    assert_eq!(content(many(1024), vec![]).unwrap().files.len(), 1024);
    assert_eq!(code(many(1025), vec![]), SqlState::PROGRAM_LIMIT_EXCEEDED);
}

fn blocks(path: &str, list: &str) -> FileRequest {
    FileRequest {
        path: BackupPath::parse(path.as_bytes()).unwrap(),
        extent: Extent::Blocks(BlockList::parse(list.as_bytes()).unwrap()),
    }
}

#[test]
fn compression_in_whatever_order() {
    let parse = |options| content(vec![file("a", vec![])], options).map(|command| command.compression);
    let zstd = |level, long| Ok(WireCompression { algorithm: Compression::Zstd, level, long });
    assert_eq!(parse(vec![word("compression", "ZSTD")]), zstd(None, false));
    assert_eq!(
        parse(vec![number("compression_level", -7), word("compression", "zstd")]),
        zstd(Some(-7), false)
    );
    assert_eq!(
        parse(vec![
            word("compression_detail", "long"),
            word("compression_level", "22"),
            word("compression", "zstd")
        ]),
        zstd(Some(22), true)
    );
    assert_eq!(
        parse(vec![word("compression", "zstd"), word("compression_detail", "level=9,long=on")]),
        zstd(Some(9), true)
    );
    assert_eq!(parse(vec![word("compression", "none")]), Ok(WireCompression::default()));
    assert_eq!(
        parse(vec![word("compression", "none"), number("compression_level", 0)]),
        Ok(WireCompression { level: Some(0), ..WireCompression::default() })
    );

    let refused = |options, code: SqlState, words: &str| {
        let error = parse(options).unwrap_err();
        assert_eq!((error.sqlstate(), error.to_string().as_str()), (code, words));
    };
    let with = |name: &str, option| vec![word("compression", name), option];
    let syntax = SqlState::SYNTAX_ERROR;
    refused(vec![word("compression", "gzip")], syntax, "unrecognized compression algorithm: \"gzip\"");
    refused(
        vec![number("compression_level", 1)],
        syntax,
        "compression level cannot be specified unless compression is enabled",
    );
    refused(
        vec![word("compression_detail", "long")],
        syntax,
        "compression detail cannot be specified unless compression is enabled",
    );
    refused(
        with("zstd", word("compression_level", "high")),
        syntax,
        "compression_level requires an integer value",
    );
    for level in [-1, 13, 1 << 40] {
        refused(
            with("lz4", number("compression_level", level)),
            SqlState::INVALID_PARAMETER_VALUE,
            "invalid compression specification: compression algorithm \"lz4\" expects a compression level \
             between 1 and 12 (default at 0)",
        );
    }
    refused(
        with("none", number("compression_level", 1)),
        syntax,
        "invalid compression specification: compression algorithm \"none\" does not accept a compression level",
    );
    refused(
        with("lz4", word("compression_detail", "long")),
        syntax,
        "invalid compression specification: compression algorithm \"lz4\" does not support long-distance mode",
    );
    refused(
        with("zstd", word("compression_detail", "thunk\u{fc}")),
        syntax,
        "invalid compression specification: unrecognized compression option: \"thunk%C3%BC\"",
    );
    refused(
        with("zstd", word("compression_detail", "workers=2")),
        SqlState::FEATURE_NOT_SUPPORTED,
        "invalid compression specification: a transfer is not compressed by several workers",
    );
    refused(
        vec![
            word("compression", "zstd"),
            number("compression_level", 1),
            word("compression_detail", "level=1"),
        ],
        syntax,
        "compression level is specified more than once",
    );
}

#[test]
fn text_of_the_commands() {
    let path = |text: &str| BackupPath::parse(text.as_bytes()).unwrap();
    let cases: [(Command, &str); 9] = [
        (
            Command::StartBackup(StartBackup { label: b"it's".to_vec(), ..StartBackup::default() }),
            "START_BACKUP (LABEL 'it''s', CHECKPOINT 'spread')",
        ),
        (
            Command::StartBackup(StartBackup {
                label: b"l".to_vec(),
                checkpoint: Checkpoint::Fast,
                progress: true,
                verify_checksums: false,
                max_rate: Some(1024),
                incremental: true,
                lease: Some(0),
                light_lease: true,
                new_backup_id: ID.parse().ok(),
            }),
            "START_BACKUP (LABEL 'l', CHECKPOINT 'fast', PROGRESS, VERIFY_CHECKSUMS false, MAX_RATE 1024, \
             INCREMENTAL, LEASE 0, LIGHT_LEASE, NEW_BACKUP_ID '00112233445566778899aabbccddeeff')",
        ),
        (Command::Attach(ID.parse().unwrap()), "START_BACKUP (BACKUP_ID '00112233445566778899aabbccddeeff')"),
        (Command::Release(None), "STOP_BACKUP (RELEASE)"),
        (Command::SendFileList(SendFileList::default()), "SEND_FILE_LIST"),
        (
            Command::SendFilesContent(SendFilesContent {
                files: vec![
                    FileRequest::whole(path("base/5/it's%20me")),
                    FileRequest {
                        path: path("base/5/1"),
                        extent: Extent::Range(Range { offset: 8192, length: Some(8192) }),
                    },
                    blocks("base/5/2", "0-3,7"),
                ],
                ..SendFilesContent::default()
            }),
            "SEND_FILES_CONTENT ('base/5/it''s%20me', 'base/5/1' (OFFSET '8192', LENGTH '8192'), \
             'base/5/2' (BLOCKS '0-3,7'))",
        ),
        (
            Command::SendFilesContent(SendFilesContent {
                files: vec![FileRequest::whole(path("a"))],
                backup_id: Some(ID.parse().unwrap()),
                verify_checksums: Some(false),
                file_checksum: ChecksumAlgorithm::Crc32c,
                compression: WireCompression { algorithm: Compression::Zstd, level: Some(-3), long: true },
            }),
            "SEND_FILES_CONTENT ('a') WITH (BACKUP_ID '00112233445566778899aabbccddeeff', \
             VERIFY_CHECKSUMS false, FILE_CHECKSUM 'CRC32C', COMPRESSION 'zstd', COMPRESSION_LEVEL '-3', \
             COMPRESSION_DETAIL 'long')",
        ),
        (
            Command::StopBackup(StopBackup { wait: false, ..StopBackup::default() }),
            "STOP_BACKUP (WAIT false)",
        ),
        (
            Command::StopBackup(StopBackup { terminate_transfers: vec![17, 4711], ..StopBackup::default() }),
            "STOP_BACKUP (TERMINATE_TRANSFERS '17,4711')",
        ),
    ];
    for (command, text) in cases {
        assert_eq!(String::from_utf8(command.to_bytes()).unwrap(), text);
    }
}

#[test]
fn calls_of_the_procedures() {
    let path = |text: &str| BackupPath::parse(text.as_bytes()).unwrap();
    let cases: [(Command, &str); 10] = [
        (
            Command::StartBackup(StartBackup {
                label: br"it's a \ label".to_vec(),
                ..StartBackup::default()
            }),
            r"CALL parallel_backup.start_backup(label => 'it''s a \ label', checkpoint => 'spread')",
        ),
        (
            Command::StartBackup(StartBackup {
                label: b"l".to_vec(),
                checkpoint: Checkpoint::Fast,
                progress: true,
                verify_checksums: false,
                max_rate: Some(1024),
                incremental: true,
                lease: Some(0),
                light_lease: true,
                new_backup_id: ID.parse().ok(),
            }),
            "CALL parallel_backup.start_backup(label => 'l', checkpoint => 'fast', progress => true, \
             verify_checksums => false, max_rate => 1024, incremental => true, lease => 0, \
             light_lease => true, new_backup_id => '00112233445566778899aabbccddeeff')",
        ),
        (Command::SendFileList(SendFileList::default()), "CALL parallel_backup.send_file_list()"),
        (
            Command::SendFileList(SendFileList { backup_id: None, estimate: true, totals: true }),
            "CALL parallel_backup.send_file_list(estimate => true, totals => true)",
        ),
        (
            Command::SendFilesContent(SendFilesContent {
                files: vec![
                    FileRequest::whole(path("base/5/it's%20me")),
                    FileRequest {
                        path: path("base/5/1"),
                        extent: Extent::Range(Range { offset: 8192, length: Some(16384) }),
                    },
                    FileRequest {
                        path: path("base/5/2"),
                        extent: Extent::Range(Range { offset: 0, length: None }),
                    },
                    blocks("base/5/3", "0-3,7"),
                    blocks("base/5/4", ""),
                ],
                ..SendFilesContent::default()
            }),
            "CALL parallel_backup.send_files_content(files => ARRAY['base/5/it''s%20me', 'base/5/1', \
             'base/5/2', 'base/5/3', 'base/5/4']::pg_catalog.text[], offsets => '{NULL,8192,0,NULL,NULL}', \
             lengths => '{NULL,16384,NULL,NULL,NULL}', blocks => '{NULL,NULL,NULL,\"0-3,7\",\"\"}')",
        ),
        (
            Command::SendFilesContent(SendFilesContent {
                files: vec![FileRequest::whole(path("a"))],
                backup_id: Some(ID.parse().unwrap()),
                verify_checksums: Some(false),
                file_checksum: ChecksumAlgorithm::Crc32c,
                compression: WireCompression { algorithm: Compression::Zstd, level: Some(-3), long: true },
            }),
            "CALL parallel_backup.send_files_content(files => ARRAY['a']::pg_catalog.text[], \
             backup_id => '00112233445566778899aabbccddeeff', verify_checksums => false, \
             file_checksum => 'CRC32C', compression => 'zstd', compression_level => -3, compression_detail => 'long')",
        ),
        (Command::StopBackup(StopBackup::default()), "CALL parallel_backup.stop_backup()"),
        (
            Command::Attach(ID.parse().unwrap()),
            "CALL parallel_backup.start_backup(backup_id => '00112233445566778899aabbccddeeff')",
        ),
        (
            Command::Release(ID.parse().ok()),
            "CALL parallel_backup.stop_backup(backup_id => '00112233445566778899aabbccddeeff', release => true)",
        ),
        (
            Command::StopBackup(StopBackup {
                backup_id: None,
                label: Some(b"it's".to_vec()),
                wait: false,
                terminate_transfers: vec![17, 4711],
            }),
            "CALL parallel_backup.stop_backup(label => 'it''s', wait => false, \
             terminate_transfers => '17,4711')",
        ),
    ];
    for (command, text) in cases {
        assert_eq!(String::from_utf8(command.to_call()).unwrap(), text);
    }
}

#[test]
fn calls_of_the_upload() {
    let call = |offset, bytes: &[u8], is_last| {
        String::from_utf8(ManifestPiece { offset, bytes, is_last }.to_call()).unwrap()
    };
    assert_eq!(call(0, b"{ \"", false), r"CALL parallel_backup.upload_manifest(piece => '\x7b2022')");
    assert_eq!(
        call(1 << 33, b"", true),
        r"CALL parallel_backup.upload_manifest(piece => '\x', piece_offset => 8589934592, is_last => true)"
    );
}
