//! `cluster init`: the first node of a new cluster, on disk, and what its operator must know.

use clap::Args;
use serde_json::json;

use super::directory::{Directory, Plan, DEFAULT_BASE_PORT};
use super::DirArg;
use crate::cli::failure::{Exit, Failure};
use crate::cli::output::{self, Output};

const SHARDS_DEFAULT: u16 = 64;

#[derive(Args, Clone, Debug)]
pub struct InitArgs {
    /// First port of the node: MQTT +0, HTTP +1, peers +2 [default: 18830]
    #[arg(long, value_name = "P", value_parser = clap::value_parser!(u16).range(1..=65_526))]
    base_port: Option<u16>,
    /// Shards, fixed for ever [default: 64]
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=1024))]
    shards: Option<u16>,
    #[command(flatten)]
    dir: DirArg,
}

pub fn init(args: &InitArgs, output: Output) -> Result<(), Failure> {
    let path = &args.dir.dir;
    let _lock = Directory::lock(path)?;
    if let Some(found) = Directory::find(path)? {
        return Err(Failure::new(
            Exit::BadInput,
            format!("there is a cluster in {} already", found.path.display()),
        )
        .advise("start it with `holdfast cluster up`, or name another --dir"));
    }
    let directory = Directory::design(
        path,
        Plan {
            nodes: 1,
            base_port: args.base_port.unwrap_or(DEFAULT_BASE_PORT),
            shards: args.shards.unwrap_or(SHARDS_DEFAULT),
        },
    )?;
    directory.save()?;
    directory.write_node_files()?;
    let (file, node) = (&directory.file, &directory.file.nodes[0]);
    if output == Output::Json {
        output::json(&json!({
            "cluster_id": file.cluster_id, "token": file.token, "config": node.config, "http": node.http,
            "secret_file": directory.path.join("secret"), "shards": file.shards,
        }));
        return Ok(());
    }
    output::line(&format!(
        "cluster {} is made; nothing runs yet\n\
         \x20 start it    holdfast node --config {}\n\
         \x20 operators   http://{}   token {}\n\
         \x20 next node   holdfast cluster token create --url http://{} --token ...\n\
         \x20             its node.toml: cluster.id = \"{}\", cluster.join = [\"{}\"],\n\
         \x20             cluster.join_token_file, and a copy of {} as cluster.secret_file",
        file.cluster_id,
        node.config.display(),
        node.http,
        file.token,
        node.http,
        file.cluster_id,
        node.http,
        directory.path.join("secret").display()
    ));
    Ok(())
}
