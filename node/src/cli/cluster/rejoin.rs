//! `cluster rejoin`: makes a host ready to come back under a new id, when the node that ran there
//! lost its data or its trust. Touches this host only; nothing is started and nobody is asked.

use std::fs;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::os::unix::fs::{chown, MetadataExt};
use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::json;
use toml_edit::{value, Array, DocumentMut};

use super::directory::write_private;
use crate::cli::failure::{Exit, Failure};
use crate::cli::node::bad_config;
use crate::cli::output::{self, Output};
use crate::config;
use crate::serve::lock;

/// What a node that joins is told by the cluster.
const FOUNDERS_KEYS: [&str; 4] = ["members", "shards", "replication", "join_token"];
const TOKEN_FILE: &str = "join-token";
/// Directories that are set aside before somebody should look at the disk.
const ASIDE_MAX: u32 = 1_000;

#[derive(Args, Clone, Debug)]
pub struct RejoinArgs {
    /// The node's configuration file; it is changed, a copy of it is kept
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// HTTP addresses of some nodes of the cluster [default: the others in cluster.members]
    #[arg(long, value_name = "ADDRESS", value_delimiter = ',')]
    join: Vec<SocketAddr>,
    /// What lets it in, from `holdfast cluster repair` or `cluster token create` [default: the operator token that
    /// the file names]
    #[arg(long, value_name = "TOKEN")]
    join_token: Option<String>,
}

pub fn rejoin(args: &RejoinArgs, output: Output) -> Result<(), Failure> {
    let before = config::load(&args.config).map_err(bad_config)?;
    let data_dir = before.node.data_dir.clone();
    if let Some(pid) = lock::holder(&data_dir) {
        let what = format!("process {pid} works in {}; nothing was changed", data_dir.display());
        return Err(Failure::new(Exit::Unavailable, what).advise("stop the node first: `systemctl stop holdfast`"));
    }
    let join = addresses(args, &before)?;
    let owned = Owned::read(&args.config)?;
    let text = fs::read_to_string(&args.config)
        .map_err(|e| Failure::disk(format!("cannot read {}", args.config.display()), &e))?;
    let text = edited(&text, &join, args.join_token.is_some())?;
    if let Some(token) = &args.join_token {
        let file = beside(&args.config, TOKEN_FILE);
        write_private(&file, token.trim().as_bytes())?;
        owned.give(&file)?;
    }
    let copy = keep_copy(&args.config)?;
    write_private(&args.config, text.as_bytes())?;
    owned.give(&args.config)?;
    if let Err(error) = config::load(&args.config) {
        // As it was: the file says something that a joining node may not say.
        let _ = fs::copy(&copy, &args.config);
        return Err(bad_config(error));
    }
    let aside = set_aside(&data_dir)?;
    say(args, aside.as_deref(), &copy, output);
    Ok(())
}

fn say(args: &RejoinArgs, aside: Option<&Path>, copy: &Path, output: Output) {
    let config = args.config.display();
    if output == Output::Json {
        return output::json(&json!({ "config": args.config, "former_config": copy, "data_set_aside": aside }));
    }
    if let Some(aside) = aside {
        output::line(&format!("what the node had is in {}", aside.display()));
    }
    output::line(&format!(
        "{config} joins under a new id; the former file is {}\nstart it: `systemctl start holdfast`, or `holdfast \
         node --config {config}`",
        copy.display()
    ));
}

fn addresses(args: &RejoinArgs, config: &config::NodeConfig) -> Result<Vec<SocketAddr>, Failure> {
    let mut join = args.join.clone();
    if join.is_empty() {
        join.clone_from(&config.cluster.join);
    }
    if join.is_empty() {
        let others = config
            .cluster
            .members
            .iter()
            .filter(|member| Some(member.id) != config.node.id);
        join = others.map(|member| member.http).collect();
    }
    join.retain(|address| *address != config.listen.http);
    if join.is_empty() {
        return Err(Failure::new(Exit::Usage, "nobody is named whom this node could ask")
            .because("the configuration names no other node")
            .advise("write --join with the HTTP addresses of some nodes of the cluster"));
    }
    Ok(join)
}

/// The file with `join` instead of an id and the founders. All else, comments too, stays.
fn edited(text: &str, join: &[SocketAddr], with_token: bool) -> Result<String, Failure> {
    let mut document: DocumentMut = text
        .parse()
        .map_err(|error| Failure::new(Exit::BadInput, "the configuration is no TOML").because(error))?;
    if let Some(node) = document.get_mut("node").and_then(|node| node.as_table_like_mut()) {
        node.remove("id");
    }
    let Some(cluster) = document.get_mut("cluster").and_then(|node| node.as_table_like_mut()) else {
        return Err(
            Failure::new(Exit::BadInput, "the configuration has no section [cluster]")
                .advise("every key is explained in deploy/config/node.toml"),
        );
    };
    for key in FOUNDERS_KEYS {
        cluster.remove(key);
    }
    let addresses: Array = join.iter().map(ToString::to_string).collect();
    cluster.insert("join", value(addresses));
    if with_token {
        cluster.insert("join_token_file", value(TOKEN_FILE));
    }
    Ok(document.to_string())
}

/// Whose the configuration is: whoever runs this may be root, and the node is not.
struct Owned(fs::Metadata);

impl Owned {
    fn read(file: &Path) -> Result<Self, Failure> {
        let metadata = fs::metadata(file);
        metadata
            .map(Self)
            .map_err(|e| Failure::disk(format!("cannot read {}", file.display()), &e))
    }

    fn give(&self, file: &Path) -> Result<(), Failure> {
        let given = chown(file, Some(self.0.uid()), Some(self.0.gid()))
            .and_then(|()| fs::set_permissions(file, self.0.permissions()));
        given.map_err(|e| Failure::disk(format!("cannot give {} to the user of the node", file.display()), &e))
    }
}

fn beside(file: &Path, name: &str) -> PathBuf {
    file.with_file_name(name)
}

/// The file as its operator wrote it. A former copy stays.
fn keep_copy(file: &Path) -> Result<PathBuf, Failure> {
    let copy = free_name(file, "before-rejoin")?;
    fs::copy(file, &copy)
        .map_err(|e| Failure::disk(format!("cannot copy {} to {}", file.display(), copy.display()), &e))?;
    Ok(copy)
}

/// `None`: there was nothing.
fn set_aside(data_dir: &Path) -> Result<Option<PathBuf>, Failure> {
    let holds_something = match fs::read_dir(data_dir) {
        Ok(mut entries) => entries.next().is_some(),
        Err(error) if error.kind() == ErrorKind::NotFound => false,
        Err(error) => {
            return Err(Failure::disk(
                format!("cannot look into {}", data_dir.display()),
                &error,
            ))
        }
    };
    if !holds_something {
        return Ok(None);
    }
    let aside = free_name(data_dir, "damaged")?;
    fs::rename(data_dir, &aside).map_err(|error| {
        Failure::disk(
            format!("cannot move {} to {}", data_dir.display(), aside.display()),
            &error,
        )
        .advise("where it is a mount point, move what it holds elsewhere, then run this again: it must be empty")
    })?;
    Ok(Some(aside))
}

/// `path.what-1`, or the next number that is free.
fn free_name(path: &Path, what: &str) -> Result<PathBuf, Failure> {
    let named = |n: u32| {
        let mut name = path.as_os_str().to_owned();
        name.push(format!(".{what}-{n}"));
        PathBuf::from(name)
    };
    (1..=ASIDE_MAX).map(named).find(|free| !free.exists()).ok_or_else(|| {
        Failure::new(
            Exit::Disk,
            format!("there are {ASIDE_MAX} copies of {} already", path.display()),
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const FOUNDER: &str = r#"# our node
[node]
id = 2 # the second
data_dir = "data"
zone = "zone-2"

[cluster]
id = "test"
secret_file = "secret"
shards = 4
replication = 1
members = [
  { id = 1, peer = "127.0.0.1:7400", mqtt = "127.0.0.1:1883", http = "127.0.0.1:8080", zone = "zone-1" },
  { id = 2, peer = "127.0.0.2:7400", mqtt = "127.0.0.2:1883", http = "127.0.0.2:8080", zone = "zone-2" },
]

[listen]
mqtt = "127.0.0.2:1883"
http = "127.0.0.2:8080"
peer = "127.0.0.2:7400"

[security]
mode = "development"
operator_token = "a-token-of-some-length"
"#;

    #[test]
    fn a_founder_becomes_a_node_that_joins_and_its_data_is_kept() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = dir.path().join("node.toml");
        fs::write(&file, FOUNDER).expect("written");
        fs::write(dir.path().join("secret"), "a secret that is long enough").expect("written");
        fs::create_dir(dir.path().join("data")).expect("made");
        fs::write(dir.path().join("data/identity"), "who").expect("written");
        let args = RejoinArgs {
            config: file.clone(),
            join: Vec::new(),
            join_token: Some("hfj-1-2".to_owned()),
        };
        rejoin(&args, Output::Json).expect("made ready");
        let config = config::load(&file).expect("a file that a node accepts");
        assert_eq!(config.node.id, None);
        assert_eq!(config.cluster.join, ["127.0.0.1:8080".parse().expect("an address")]);
        assert_eq!(config.cluster.join_token.expect("a token").0, b"hfj-1-2");
        assert_eq!(config.node.zone, "zone-2");
        assert!(fs::read_to_string(&file).expect("read").starts_with("# our node"));
        assert_eq!(
            fs::read_to_string(dir.path().join("node.toml.before-rejoin-1")).expect("kept"),
            FOUNDER
        );
        assert!(dir.path().join("data.damaged-1/identity").exists());
        // Again, before it was started: nothing more is lost.
        rejoin(&args, Output::Json).expect("made ready");
        assert!(!dir.path().join("data.damaged-2").exists());
    }

    #[test]
    fn a_running_node_and_a_file_without_others_are_left_alone() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = dir.path().join("node.toml");
        fs::write(dir.path().join("secret"), "a secret that is long enough").expect("written");
        let alone = FOUNDER.replace("  { id = 1,", "# { id = 1,");
        fs::write(&file, &alone).expect("written");
        let args = RejoinArgs {
            config: file.clone(),
            join: Vec::new(),
            join_token: None,
        };
        assert_eq!(
            rejoin(&args, Output::Json).expect_err("nobody to ask").exit,
            Exit::Usage
        );
        fs::create_dir(dir.path().join("data")).expect("made");
        let lock = lock::take(&dir.path().join("data")).expect("free");
        assert_eq!(
            rejoin(&args, Output::Json).expect_err("it runs").exit,
            Exit::Unavailable
        );
        drop(lock);
        assert_eq!(fs::read_to_string(&file).expect("read"), alone);
    }
}
