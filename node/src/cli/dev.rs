//! `holdfast dev`: one node in this process, with everything on, to play with.
//!
//! It is a local cluster of one, so `holdfast device … --dir` works on it.

use std::net::SocketAddr;
use std::path::PathBuf;

use super::cluster::{running, Directory, Plan, ALLOW_DRILLS, DEFAULT_BASE_PORT};
use super::failure::{Exit, Failure};
use super::node::{bad_config, ended};
use super::output::{self, Output};
use crate::{config, serve};

const SHARDS: u16 = 4;

#[derive(clap::Args, Debug)]
#[command(
    after_help = "Example:\n  holdfast dev\n  holdfast dev --data ./holdfast-dev --base-port 20000\n\nWithout --data everything is gone when it ends."
)]
pub struct DevArgs {
    /// Keep the data in this directory
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// MQTT on base port +0, HTTP on +1, peers on +2 [default: 18830]
    #[arg(long, value_name = "P", value_parser = clap::value_parser!(u16).range(1..=65_526))]
    base_port: Option<u16>,
    /// Address for devices instead, such as 127.0.0.1:1883
    #[arg(long, value_name = "ADDRESS")]
    mqtt: Option<SocketAddr>,
    /// Address for operators instead, such as 127.0.0.1:8080
    #[arg(long, value_name = "ADDRESS")]
    http: Option<SocketAddr>,
    /// Let drills break this node for a while (`holdfast chaos`)
    #[arg(long)]
    allow_drills: bool,
}

pub fn run(args: &DevArgs, output: Output) -> Result<(), Failure> {
    #[cfg(feature = "planted")]
    super::planted::choose()?;
    match &args.data {
        Some(data) => run_in(data.clone(), args, output),
        None => {
            let made = tempfile::Builder::new().prefix("holdfast-dev-").tempdir();
            let temporary = made.map_err(|e| Failure::disk("cannot make a temporary directory", &e))?;
            let ended = run_in(temporary.path().to_owned(), args, output);
            remove(temporary)?;
            ended
        }
    }
}

/// Background work may still be writing its last file.
fn remove(temporary: tempfile::TempDir) -> Result<(), Failure> {
    let path = temporary.keep();
    let mut tries = 0;
    loop {
        match std::fs::remove_dir_all(&path) {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            Err(error) if tries == REMOVE_TRIES => {
                return Err(Failure::disk(&format!("cannot remove {}", path.display()), &error));
            }
            Err(_) => std::thread::sleep(std::time::Duration::from_millis(100)),
        }
        tries += 1;
    }
}

const REMOVE_TRIES: u32 = 20;

fn run_in(path: PathBuf, args: &DevArgs, output: Output) -> Result<(), Failure> {
    let found = Directory::find(&path)?;
    let lock = Directory::lock(&path)?;
    let mut directory = match found {
        Some(directory) if directory.file.nodes.len() == 1 => directory,
        Some(directory) => {
            let what = format!(
                "{} holds a cluster of {} nodes",
                directory.path.display(),
                directory.file.nodes.len()
            );
            return Err(Failure::new(Exit::BadInput, what)
                .advise("start it with `holdfast cluster up`, or name another --data"));
        }
        None => {
            let base_port = args.base_port.unwrap_or(DEFAULT_BASE_PORT);
            Directory::design(
                &path,
                Plan {
                    nodes: 1,
                    base_port,
                    shards: SHARDS,
                },
            )?
        }
    };
    move_ports(&mut directory, args)?;
    let me = running_here();
    let node = &mut directory.file.nodes[0];
    if let Some(other) = running(node) {
        return Err(Failure::new(
            Exit::Unavailable,
            format!("{} is in use by process {}", path.display(), other.pid),
        )
        .advise("stop it, or name another --data"));
    }
    node.pid = me.map(|(pid, _)| pid);
    node.pid_started = me.map(|(_, started)| started);
    super::cluster::check_ports(node)?;
    directory.save()?;
    directory.write_node_files()?;
    drop(lock);
    let drills = args.allow_drills || directory.file.allow_drills;
    let variables = drills.then_some(ALLOW_DRILLS);
    let config = config::load_with(&directory.file.nodes[0].config, variables.as_slice()).map_err(bad_config)?;
    let shown = directory.clone();
    let events = serve::Events {
        serving: Some(Box::new(move |_| print_endpoints(&shown, output))),
    };
    let ended = serve::run(config, events).map_err(ended);
    directory.record_process(directory.file.nodes[0].id, None)?;
    ended
}

/// Of a single node nobody else has to know the ports, so they may change from run to run.
fn move_ports(directory: &mut Directory, args: &DevArgs) -> Result<(), Failure> {
    let wanted = args.base_port.map(|base_port| {
        Directory::design(
            &directory.path,
            Plan {
                nodes: 1,
                base_port,
                shards: SHARDS,
            },
        )
    });
    let wanted = wanted.transpose()?.map(|design| design.file.nodes[0].clone());
    let node = &mut directory.file.nodes[0];
    let before = node.clone();
    if let Some(wanted) = wanted {
        (node.mqtt, node.http, node.peer, node.ws) = (wanted.mqtt, wanted.http, wanted.peer, wanted.ws);
    }
    node.mqtt = args.mqtt.unwrap_or(node.mqtt);
    node.http = args.http.unwrap_or(node.http);
    if *node != before && node.config.exists() {
        let removed = std::fs::remove_file(&node.config);
        removed.map_err(|e| Failure::disk(format!("cannot replace {}", node.config.display()), &e))?;
    }
    Ok(())
}

fn running_here() -> Option<(u32, u64)> {
    super::cluster::look(std::process::id()).map(|me| (me.pid, me.started))
}

fn print_endpoints(directory: &Directory, output: Output) {
    let file = &directory.file;
    let node = &file.nodes[0];
    if output == Output::Json {
        return output::json(&serde_json::to_value(file).expect("plain data becomes JSON"));
    }
    let (host, port, dir) = (node.mqtt.ip(), node.mqtt.port(), directory.path.display());
    output::line(&format!(
        "holdfast serves; Ctrl-C stops it\n\
         \x20 devices    mqtt://{}   (development mode: no credentials, this machine only)\n\
         \x20            ws://{}/mqtt\n\
         \x20 operators  http://{}\n\
         \x20 token      {}\n\
         \x20 data       {dir}\n\
         try\n\
         \x20 mosquitto_pub -h {host} -p {port} -V 5 -q 1 -i lamp-1 -t devices/lamp-1/telemetry -m '{{\"lit\":true}}'\n\
         \x20 holdfast device telemetry lamp-1 --dir {dir}",
        node.mqtt, node.ws, node.http, file.token
    ));
}
