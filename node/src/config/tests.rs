//! Tables: what is accepted, what is refused and with which words; and that the documented file
//! and the code say the same.

use super::*;

const DOCUMENTED: &str = include_str!("../../../deploy/config/node.toml");

const SMALL: &str = r#"[node]
id = 1
data_dir = "data"
[cluster]
id = "c"
secret = "0123456789abcdef"
replication = 1
members = [{ id = 1, peer = "127.0.0.1:7400", mqtt = "127.0.0.1:1883", http = "127.0.0.1:8080" }]
[security]
operator_token = "0123456789abcdef"
"#;

fn read(text: &str, variables: &[(&str, &str)]) -> Result<NodeConfig, String> {
    let variables = variables
        .iter()
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    parse(Path::new("node.toml"), text, variables.collect())
        .map(|(config, _)| config)
        .map_err(|error| error.to_string())
}

/// `SMALL` with one more line at the end of a section.
fn with(section: &str, line: &str) -> String {
    let header = format!("[{section}]\n");
    if SMALL.contains(&header) {
        SMALL.replace(&header, &format!("{header}{line}\n"))
    } else {
        format!("{SMALL}{header}{line}\n")
    }
}

#[track_caller]
fn refused(text: &str, variables: &[(&str, &str)], expected: &str) {
    let message = read(text, variables).map(|_| ()).expect_err("must be refused");
    assert!(message.contains(expected), "expected {expected:?} in {message:?}");
}

#[test]
fn a_small_file_is_enough() {
    let config = read(SMALL, &[]).expect("accepted");
    assert_eq!(config.cluster.shards, 64);
    assert_eq!(config.raft.heartbeat, Duration::from_millis(100));
    assert_eq!(config.node.data_dir, Path::new("data"));
    let cluster = config.cluster_config(Who {
        id: 1,
        shards: 4,
        fresh_uuid: None,
    });
    assert_eq!(cluster.members.len(), 1);
    assert!(!cluster.unsafe_skip_log_fsync);
}

#[test]
fn relative_paths_start_at_the_file() {
    let config = parse(Path::new("/etc/holdfast/node.toml"), SMALL, BTreeMap::new())
        .expect("accepted")
        .0;
    assert_eq!(config.node.data_dir, Path::new("/etc/holdfast/data"));
}

/// The documented file is accepted, names every key, and its values are the code's defaults.
#[test]
fn the_documented_file_agrees_with_the_code() {
    let file = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/config/node.toml"));
    let (_, known) = parse(file, DOCUMENTED, BTreeMap::new())
        .map_err(|e| e.to_string())
        .expect("accepted");
    for KnownKey {
        section, name, default, ..
    } in known
    {
        let documented = documented_value(section, name)
            .unwrap_or_else(|| panic!("{section}.{name} is not documented in deploy/config/node.toml"));
        if let Some(default) = default {
            assert_eq!(documented, default, "default of {section}.{name}");
        }
    }
}

/// The text after `name =` in a section of the documented file, also when commented out.
fn documented_value(section: &str, name: &str) -> Option<String> {
    if (section, name) == ("cluster", "members") {
        return DOCUMENTED.contains("[[cluster.members]]").then(String::new);
    }
    let start = DOCUMENTED.find(&format!("\n[{section}]\n"))? + section.len() + 4;
    let body = &DOCUMENTED[start..];
    let body = &body[..body.find("\n[").unwrap_or(body.len())];
    body.lines().find_map(|line| {
        let line = line.strip_prefix("# ").unwrap_or(line);
        let value = line.strip_prefix(name)?.trim_start().strip_prefix('=')?;
        Some(value.trim().to_owned())
    })
}

#[test]
fn bad_files_are_refused_with_file_line_and_key() {
    refused("[node", &[], "node.toml:1: not TOML");
    refused("[node]\nid = 1\nid = 2\n", &[], "node.toml:3: not TOML");
    refused(&with("node", "ide = 2"), &[], "node.toml:2: node.ide: unknown key");
    refused(
        &with("raft", "hartbeat_ms = 100"),
        &[],
        "node.toml:12: raft.hartbeat_ms: unknown key; did you mean `heartbeat_ms`?",
    );
    refused(
        &format!("{SMALL}[rafft]\n"),
        &[],
        "node.toml:11: rafft: unknown section; did you mean `raft`?",
    );
    refused(
        &with("raft", "heartbeat_ms = 1"),
        &[],
        "node.toml:12: raft.heartbeat_ms: 1 is out of range, 10..=10000 is allowed",
    );
    refused(&with("raft", "heartbeat_ms = -1"), &[], "out of range");
    refused(
        &with("raft", "heartbeat_ms = \"fast\""),
        &[],
        "raft.heartbeat_ms: is string, must be a whole number",
    );
    refused(
        &with("retention", "telemetry_age = \"3 weeks\""),
        &[],
        "node.toml:12: retention.telemetry_age: \"3 weeks\" is no duration",
    );
    refused(&with("retention", "telemetry_age = 3"), &[], "must be a duration");
    refused(
        &with("retention", "telemetry_age = \"0s\""),
        &[],
        "out of range, 1s..=3650d",
    );
    refused(&with("devices", "auto_register = 1"), &[], "must be true or false");
    refused(
        &with("listen", "mqtt = \"localhost\""),
        &[],
        "listen.mqtt: \"localhost\" is no address",
    );
    refused(&with("log", "filter = \"info,=,\""), &[], "log.filter");
    refused(&with("log", "format = \"xml\""), &[], "log.format: \"xml\" is unknown");
    refused(
        &with("security", "mode = \"open\""),
        &[],
        "security.mode: \"open\" is unknown",
    );
    refused(
        &SMALL.replace("id = 1\n", ""),
        &[],
        "node.toml: node.id: is missing and has no default",
    );
    refused(
        &SMALL.replace("\"c\"", "\"a b\""),
        &[],
        "node.toml:5: cluster.id: \"a b\" is no name",
    );
    refused(
        &SMALL.replace("\"0123456789abcdef\"\nrep", "\"short\"\nrep"),
        &[],
        "node.toml:6: cluster.secret: has 5 bytes",
    );
    refused(
        &SMALL.replace("peer = \"127.0.0.1:7400\", ", ""),
        &[],
        "node.toml:8: cluster.members.peer: is missing",
    );
    refused(
        &SMALL.replace("peer =", "pear ="),
        &[],
        "node.toml:8: cluster.members.pear: unknown key; did you mean `peer`?",
    );
}

#[test]
fn contradictions_are_refused() {
    refused(
        &SMALL.replace("id = 1\n", "id = 7\n"),
        &[],
        "node.toml:2: node.id: 7 is not among cluster.members",
    );
    refused(
        &SMALL.replace("replication = 1", "replication = 3"),
        &[],
        "node.toml:7: cluster.replication: 3 replicas need",
    );
    refused(&with("raft", "election_min_ms = 150"), &[], "twice raft.heartbeat_ms");
    refused(
        &with("raft", "election_max_ms = 400"),
        &[],
        "greater than raft.election_min_ms",
    );
    refused(
        &with("listen", "mqtt = \"127.0.0.1:8080\""),
        &[],
        "is used by listen.mqtt already",
    );
    refused(
        &with("listen", "mqtt = \"127.0.0.1:1884\""),
        &[],
        "contradicts 127.0.0.1:1883",
    );
    refused(
        &with("limits", "receive_maximum = 100"),
        &[],
        "limits.packet_ids_max: 32 is less than",
    );
    refused(
        &with("security", "operator_token_file = \"x\""),
        &[],
        "contradicts operator_token: give one of them",
    );
    refused(&with("node", "zone = \"b\""), &[], "contradicts \"zone-1\"");
    let twice = SMALL.replace(
        "members = [",
        "members = [{ id = 1, peer = \"127.0.0.1:1\", mqtt = \"127.0.0.1:2\", http = \"127.0.0.1:3\" }, ",
    );
    refused(&twice, &[], "id 1 is there twice");
}

#[test]
fn an_address_others_can_reach_is_refused_without_authentication() {
    for name in ["mqtt", "http", "peer"] {
        for address in ["0.0.0.0:1999", "192.168.1.5:1999", "[::]:1999"] {
            let text = with("listen", &format!("{name} = \"{address}\""));
            refused(
                &text,
                &[],
                &format!("listen.{name}: {address} can be reached from other machines"),
            );
        }
    }
}

#[test]
fn skipping_fsync_needs_permission() {
    for name in ["unsafe_skip_log_fsync", "unsafe_skip_vote_fsync"] {
        let text = with("storage", &format!("{name} = true"));
        refused(
            &text,
            &[],
            &format!("node.toml:12: storage.{name}: loses acknowledged data"),
        );
        assert!(read(&text, &[("HOLDFAST_ALLOW_UNSAFE", "1")]).is_ok());
    }
    let config = read(
        SMALL,
        &[
            ("HOLDFAST_ALLOW_UNSAFE", "1"),
            ("HOLDFAST_STORAGE_UNSAFE_SKIP_LOG_FSYNC", "true"),
        ],
    );
    assert!(config.expect("accepted").storage.unsafe_skip_log_fsync);
}

#[test]
fn variables_override_the_file_and_are_checked_alike() {
    let config = read(
        &with("raft", "heartbeat_ms = 50"),
        &[
            ("HOLDFAST_RAFT_HEARTBEAT_MS", "200"),
            ("HOLDFAST_CLUSTER_ID", "42"),
            ("HOLDFAST_RETENTION_TELEMETRY_AGE", "2d"),
            ("HOLDFAST_DIR", "/somewhere"),
        ],
    )
    .expect("accepted");
    assert_eq!(config.raft.heartbeat, Duration::from_millis(200));
    assert_eq!(config.cluster.id, "42");
    assert_eq!(config.retention.telemetry_age, Duration::from_secs(2 * 86_400));
    refused(
        SMALL,
        &[("HOLDFAST_RAFT_HEARTBEAT_MS", "1")],
        "environment variable HOLDFAST_RAFT_HEARTBEAT_MS: raft.heartbeat_ms: 1 is out of range",
    );
    refused(
        SMALL,
        &[("HOLDFAST_RAFT_HARTBEAT_MS", "1")],
        "environment variable HOLDFAST_RAFT_HARTBEAT_MS: unknown key; did you mean `HOLDFAST_RAFT_HEARTBEAT_MS`?",
    );
    refused(
        SMALL,
        &[("HOLDFAST_CLUSTER_MEMBERS", "none")],
        "must be a TOML array of tables",
    );
}

#[test]
fn all_problems_are_listed_in_the_order_of_the_file() {
    let text = with("raft", "heartbeat_ms = 1").replace("id = 1\n", "id = 0\n");
    let message = read(&text, &[]).map(|_| ()).expect_err("refused");
    let lines: Vec<&str> = message.lines().collect();
    assert!(lines[0].starts_with("node.toml:2: node.id"), "{message}");
    assert!(
        lines
            .iter()
            .any(|line| line.starts_with("node.toml:12: raft.heartbeat_ms")),
        "{message}"
    );
}

#[test]
fn secrets_come_from_files_and_are_never_shown() {
    let directory = tempfile::tempdir().expect("temp dir");
    std::fs::write(directory.path().join("token"), "a-token-of-some-length\n").expect("written");
    let file = directory.path().join("node.toml");
    let text = SMALL.replace(
        "operator_token = \"0123456789abcdef\"",
        "operator_token_file = \"token\"",
    );
    let config = parse(&file, &text, BTreeMap::new())
        .map_err(|e| e.to_string())
        .expect("accepted")
        .0;
    assert_eq!(config.security.operator_token.0, b"a-token-of-some-length");
    assert!(!format!("{config:?}").contains("a-token"));
    let missing = parse(&file, &text.replace("\"token\"", "\"gone\""), BTreeMap::new()).map(|_| ());
    assert!(missing
        .expect_err("refused")
        .to_string()
        .contains(":10: security.operator_token_file: cannot read"));
}

/// No text makes the reader panic, and every refusal says something.
#[test]
fn any_text_is_answered() {
    use proptest::prelude::*;
    proptest!(ProptestConfig::with_cases(256), |(text in "\\PC{0,200}", cut in 0..SMALL.len())| {
        if let Err(message) = read(&text, &[]) {
            prop_assert!(!message.is_empty());
        }
        let _ = read(&SMALL[..cut], &[]);
        let _ = read(&format!("[node]\nid = {text}\n"), &[]);
    });
}

fn settings_of(text: &str, variables: &[(&str, &str)]) -> NodeConfig {
    let config = read(text, variables);
    config.unwrap_or_else(|problems| panic!("{problems}"))
}

#[test]
fn every_setting_says_where_it_comes_from() {
    let config = settings_of(
        &with("raft", "heartbeat_ms = 50 # quick"),
        &[("HOLDFAST_RETENTION_TELEMETRY_AGE", "2d")],
    );
    let shown = |key: &str| {
        let setting = config.settings.iter().find(|setting| setting.key == key);
        let setting = setting.unwrap_or_else(|| panic!("{key} is missing"));
        (setting.value.clone().unwrap_or_default(), setting.source())
    };
    for (key, value, source) in [
        ("node.id", "1", "node.toml:2"),
        ("raft.heartbeat_ms", "50", "node.toml:12"),
        ("raft.election_min_ms", "400", "default"),
        (
            "retention.telemetry_age",
            "\"2d\"",
            "environment variable HOLDFAST_RETENTION_TELEMETRY_AGE",
        ),
        ("security.operator_token", "\"[secret]\"", "node.toml:10"),
        ("security.operator_token_file", "", "not set"),
        ("cluster.secret", "\"[secret]\"", "node.toml:6"),
    ] {
        assert_eq!(shown(key), (value.to_owned(), source.to_owned()), "{key}");
    }
    let (members, _) = shown("cluster.members");
    assert!(members.contains("peer = \"127.0.0.1:7400\""), "{members}");
    assert!(!format!("{:?}", config.settings).contains("0123456789abcdef"));
}

#[test]
fn changes_are_named_with_what_becomes_of_them() {
    let before = settings_of(SMALL, &[]);
    assert_eq!(settings::changes(&before, &before), []);
    let text = with("limits", "connections_max = 7\npacket_bytes_max = 4096").replace(
        "operator_token = \"0123456789abcdef\"",
        "operator_token = \"fedcba9876543210\"",
    );
    let changes = settings::changes(&before, &settings_of(&text, &[]));
    let shown: Vec<(&str, &str, &str, bool)> = changes
        .iter()
        .map(|c| (c.key.as_str(), c.from.as_str(), c.to.as_str(), c.reloadable))
        .collect();
    assert_eq!(
        shown,
        [
            ("limits.connections_max", "18000", "7", true),
            ("limits.packet_bytes_max", "262144", "4096", false),
            ("security.operator_token", "\"[secret]\"", "\"[another secret]\"", true),
        ]
    );
}

#[test]
fn what_can_be_reloaded_exists_and_is_documented() {
    let config = settings_of(SMALL, &[]);
    let page = include_str!("../../../docs/reference/configuration.md");
    for key in settings::RELOADABLE {
        assert!(config.settings.iter().any(|setting| setting.key == *key), "{key}");
        let name = key.split_once('.').map_or(*key, |(_, name)| name);
        assert!(page.contains(name), "{key} is not in docs/reference/configuration.md");
    }
}
