//! `cluster up` and `cluster start`: makes what is missing, starts what does not run, waits until
//! every shard has a leader. Restarts nothing by itself.

use std::path::Path;
use std::process::Child;
use std::time::{Duration, Instant};

use clap::Args;
use serde_json::json;

use super::directory::{Directory, NodeEntry, Plan, DEFAULT_BASE_PORT, NODES_MAX, PORTS_PER_NODE};
use super::{process, stop, view, DirArg, NodeArg};
use crate::cli::failure::{Exit, Failure};
use crate::cli::output::{self, Output, Progress};

/// How long the nodes may take until every shard has a leader.
const READY_DEADLINE: Duration = Duration::from_secs(60);
/// How often they are asked meanwhile.
const ASK_EVERY: Duration = Duration::from_millis(200);
/// How often the foreground summary is renewed.
const SUMMARY_EVERY: Duration = Duration::from_secs(1);
const NODES_DEFAULT: u16 = 3;
const SHARDS_DEFAULT: u16 = 16;

#[derive(Args, Clone, Debug)]
pub struct UpArgs {
    /// Number of nodes of a new cluster [default: 3]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=i64::from(NODES_MAX)))]
    pub nodes: Option<u16>,
    /// First port of a new cluster; node i uses base + 10(i-1) and the nine above [default: 18830]
    #[arg(long, value_name = "P", value_parser = clap::value_parser!(u16).range(1..))]
    pub base_port: Option<u16>,
    /// Shards of a new cluster, fixed for ever [default: 16]
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub shards: Option<u16>,
    /// Return once every shard has a leader; the nodes go on running
    #[arg(long)]
    pub detach: bool,
    /// Let drills break the nodes for a while (`holdfast chaos`); holds for this cluster from now on
    #[arg(long)]
    pub allow_drills: bool,
    #[command(flatten)]
    pub dir: DirArg,
}

pub(super) struct Started {
    pub id: u64,
    pub child: Child,
}

pub async fn up(args: UpArgs, output: Output) -> Result<(), Failure> {
    let path = &args.dir.dir;
    let found = Directory::find(path)?;
    let lock = Directory::lock(path)?;
    let mut directory = match found {
        Some(directory) => {
            same_as_before(&directory, &args)?;
            directory
        }
        None => {
            let plan = plan(&args)?;
            Directory::design(path, plan)?
        }
    };
    let_the_dying_go(&directory.file.nodes).await;
    let newly = args.allow_drills && !directory.file.allow_drills;
    directory.file.allow_drills |= args.allow_drills;
    let mut started = start_missing(&mut directory, None).await?;
    drop(lock);
    let mut progress = Progress::new();
    if newly && started.len() < directory.file.nodes.len() {
        progress.say("nodes that run already take no faults before they are started anew");
    }
    if let Err(failure) = wait_ready(&directory, &mut started, &mut progress).await {
        if !args.detach {
            stop::stop_all(&mut directory, &mut progress).await?;
        }
        return Err(failure);
    }
    if args.detach {
        drop(progress);
        report(&directory, started.len(), output);
        return Ok(());
    }
    foreground(&mut directory, started, progress).await
}

pub async fn start(args: NodeArg, output: Output) -> Result<(), Failure> {
    let mut directory = Directory::open(&args.dir.dir)?;
    let node = directory.node(args.id)?.clone();
    let lock = Directory::lock(&args.dir.dir)?;
    let_the_dying_go(std::slice::from_ref(&node)).await;
    if let Some(running) = process::running(&node) {
        say(
            output,
            &format!("node {} runs already (pid {})", node.id, running.pid),
            &node,
        );
        return Ok(());
    }
    let mut started = start_missing(&mut directory, Some(args.id)).await?;
    drop(lock);
    wait_serving(&directory, &node, &mut started).await?;
    let word = settled_word(&directory, &node, &mut started).await?;
    let text = word.text(node.id, &directory.path);
    say_word(output, &text, directory.node(args.id)?, Some(&word));
    Ok(())
}

/// Starts one node that does not run, and waits until it answers.
///
/// # Errors
/// As `cluster start`.
pub(super) async fn start_quietly(path: &Path, id: u64) -> Result<(), Failure> {
    let mut directory = Directory::open(path)?;
    let node = directory.node(id)?.clone();
    let lock = Directory::lock(path)?;
    let mut started = start_missing(&mut directory, Some(id)).await?;
    drop(lock);
    wait_serving(&directory, &node, &mut started).await
}

/// What a node that was just started says of itself.
enum Word {
    Serves,
    Drained,
    Rebuilding,
    Damaged(String),
    /// It waits for something, most likely for other nodes.
    NotYet(String),
}

impl Word {
    fn state(&self) -> &'static str {
        match self {
            Self::Serves => "up",
            Self::Drained => "draining",
            Self::Rebuilding => "rebuilding",
            Self::Damaged(_) => "damaged",
            Self::NotYet(_) => "starting",
        }
    }

    fn text(&self, id: u64, dir: &Path) -> String {
        let dir = dir.display();
        match self {
            Self::Serves => format!("node {id} serves"),
            Self::Drained => format!(
                "node {id} runs and is drained: it takes no connections\n    → `holdfast cluster undrain {id} --dir {dir}`"
            ),
            Self::Rebuilding => {
                format!("node {id} runs and serves what it has; the rest of its state is sent to it by the others")
            }
            Self::Damaged(reason) => format!(
                "node {id} runs, but takes no part: {reason}\n    → `holdfast cluster repair {id} --dir {dir}` replaces \
                 it"
            ),
            Self::NotYet(reason) => format!(
                "node {id} runs and does not serve yet: {reason}\n    → see `holdfast cluster status --dir {dir}`"
            ),
        }
    }
}

/// Waits a moment until it is clear how the node is: it may find out from its peers only, a moment
/// after it began to answer, that it must not take part.
async fn settled_word(directory: &Directory, node: &NodeEntry, started: &mut [Started]) -> Result<Word, Failure> {
    let deadline = Instant::now() + WORD_DEADLINE;
    loop {
        fail_if_ended(directory, started)?;
        let word = word(directory, node).await;
        if !matches!(word, Word::NotYet(_)) || Instant::now() >= deadline {
            return Ok(word);
        }
        tokio::time::sleep(ASK_EVERY).await;
    }
}

async fn word(directory: &Directory, node: &NodeEntry) -> Word {
    let Ok(client) = view::client(directory, node) else {
        return Word::NotYet("it cannot be asked".to_owned());
    };
    if let Some(view) = view::ask(&client).await {
        let own = view.nodes.into_iter().find(|said| said.id == node.id);
        match own.as_ref().map(|own| own.state.as_str()) {
            Some("damaged") => return Word::Damaged(own.and_then(|own| own.fault).unwrap_or_default()),
            Some("rebuilding") => return Word::Rebuilding,
            Some("draining") => return Word::Drained,
            _ => {}
        }
    }
    match client.get("/readyz").await {
        Ok(_) => Word::Serves,
        Err(failure) => Word::NotYet(if failure.why.is_empty() {
            failure.what
        } else {
            failure.why
        }),
    }
}

/// A process that was just killed counts as running until the kernel has taken it down; taking it
/// for alive would leave its node stopped.
async fn let_the_dying_go(nodes: &[NodeEntry]) {
    if nodes.iter().any(|node| process::running(node).is_some()) {
        tokio::time::sleep(DYING_GRACE).await;
    }
}

const DYING_GRACE: Duration = Duration::from_millis(400);
/// How long a node that answers may take until it serves, before it is said that it does not.
const WORD_DEADLINE: Duration = Duration::from_secs(8);

fn say(output: Output, text: &str, node: &NodeEntry) {
    say_word(output, text, node, None);
}

fn say_word(output: Output, text: &str, node: &NodeEntry, word: Option<&Word>) {
    match output {
        Output::Table => output::line(text),
        Output::Json => {
            let fault = word.and_then(|word| match word {
                Word::Damaged(reason) | Word::NotYet(reason) => Some(reason),
                Word::Serves | Word::Drained | Word::Rebuilding => None,
            });
            output::json(&json!({ "node": node, "state": word.map(Word::state), "fault": fault }));
        }
    }
}

pub(super) fn plan(args: &UpArgs) -> Result<Plan, Failure> {
    let plan = Plan {
        nodes: args.nodes.unwrap_or(NODES_DEFAULT),
        base_port: args.base_port.unwrap_or(DEFAULT_BASE_PORT),
        shards: args.shards.unwrap_or(SHARDS_DEFAULT),
    };
    let needed = u32::from(plan.nodes) * u32::from(PORTS_PER_NODE);
    if u32::from(plan.base_port) + needed > u32::from(u16::MAX) + 1 {
        let what = format!(
            "{} nodes from port {} need ports beyond 65535",
            plan.nodes, plan.base_port
        );
        let advice = format!("choose --base-port {} or lower", u32::from(u16::MAX) + 1 - needed);
        return Err(Failure::new(Exit::Usage, what).advise(advice));
    }
    Ok(plan)
}

/// Ports and shards are fixed when a cluster is made; nodes are added and removed by name.
fn same_as_before(directory: &Directory, args: &UpArgs) -> Result<(), Failure> {
    let file = &directory.file;
    let nodes = u16::try_from(file.nodes.len()).unwrap_or(u16::MAX);
    let base_port = directory.base_port();
    let given = [
        ("--nodes", args.nodes, nodes),
        ("--base-port", args.base_port, base_port),
        ("--shards", args.shards, file.shards),
    ];
    for (name, wanted, fixed) in given {
        if wanted.is_some_and(|wanted| wanted != fixed) {
            let what = format!("the cluster in {} has {name} {fixed}", directory.path.display());
            return Err(Failure::new(Exit::BadInput, what)
                .because("ports and shards are fixed when a cluster is made, nodes come and go by other commands")
                .advise(format!(
                    "leave {name} out; `holdfast cluster add` and `remove` change the number of nodes"
                )));
        }
    }
    Ok(())
}

/// Starts every node that does not run (or only `only`), after checking that all ports are free.
async fn start_missing(directory: &mut Directory, only: Option<u64>) -> Result<Vec<Started>, Failure> {
    let wanted = |node: &NodeEntry| only.is_none_or(|id| id == node.id);
    let mut missing = Vec::new();
    for node in directory.file.nodes.iter_mut().filter(|node| wanted(node)) {
        let running = process::running(node);
        node.pid = running.map(|found| found.pid);
        node.pid_started = running.map(|found| found.started);
        if running.is_none() {
            missing.push(node.clone());
        }
    }
    for node in &missing {
        process::await_ports(node).await?;
    }
    directory.save()?;
    directory.write_node_files()?;
    let mut started = Vec::new();
    for node in &missing {
        let (child, running) = process::spawn(node, directory.file.allow_drills)?;
        directory.record_process(node.id, Some((running.pid, running.started)))?;
        started.push(Started { id: node.id, child });
    }
    Ok(started)
}

/// Waits until every node answers and knows a leader of every shard.
async fn wait_ready(directory: &Directory, started: &mut [Started], progress: &mut Progress) -> Result<(), Failure> {
    let deadline = Instant::now() + READY_DEADLINE;
    loop {
        fail_if_ended(directory, started)?;
        let views = view::ask_all(directory).await?;
        let silent: Vec<&NodeEntry> = directory
            .file
            .nodes
            .iter()
            .zip(&views)
            .filter(|(_, v)| v.is_none())
            .map(|(n, _)| n)
            .collect();
        let led = views
            .iter()
            .map(|v| v.as_ref().map_or(0, view::led_shards))
            .min()
            .unwrap_or(0);
        let (answering, nodes, shards) = (
            views.len() - silent.len(),
            views.len(),
            usize::from(directory.file.shards),
        );
        if silent.is_empty() && views.iter().flatten().all(|v| view::all_led(v, shards)) {
            return Ok(());
        }
        progress.say(&format!(
            "starting: {answering} of {nodes} nodes answer, {led} of {shards} shards have a leader"
        ));
        if Instant::now() >= deadline {
            return Err(not_ready(directory, &silent, led));
        }
        tokio::time::sleep(ASK_EVERY).await;
    }
}

fn not_ready(directory: &Directory, silent: &[&NodeEntry], led: usize) -> Failure {
    let what = format!("the cluster is not ready after {} s", READY_DEADLINE.as_secs());
    let why = if silent.is_empty() {
        format!("{led} of {} shards have a leader", directory.file.shards)
    } else {
        let logs = silent.iter().map(|node| {
            format!(
                "node {} does not answer; its log ends with\n{}",
                node.id,
                process::log_tail(&node.log)
            )
        });
        logs.collect::<Vec<_>>().join("\n")
    };
    let dir = directory.path.display();
    Failure::new(Exit::Unavailable, what).because(why).advise(format!(
        "see `holdfast cluster status --dir {dir}`; `holdfast cluster down --dir {dir}` stops what runs"
    ))
}

pub(super) async fn wait_serving(
    directory: &Directory,
    node: &NodeEntry,
    started: &mut [Started],
) -> Result<(), Failure> {
    let deadline = Instant::now() + READY_DEADLINE;
    let client = view::client(directory, node)?;
    while client.get("/api/v1/cluster").await.is_err() {
        fail_if_ended(directory, started)?;
        if Instant::now() >= deadline {
            return Err(not_ready(directory, &[node], 0));
        }
        tokio::time::sleep(ASK_EVERY).await;
    }
    Ok(())
}

/// A node that ended while it was started takes its exit code along, where that says more.
pub(super) fn fail_if_ended(directory: &Directory, started: &mut [Started]) -> Result<(), Failure> {
    for node in started {
        let Ok(Some(status)) = node.child.try_wait() else {
            continue;
        };
        let exit = match status.code() {
            Some(65) => Exit::BadInput,
            Some(74) => Exit::Disk,
            _ => Exit::Unavailable,
        };
        let log = &directory.node(node.id)?.log;
        return Err(Failure::new(exit, format!("node {} ended while it was started ({status})", node.id))
            .because(format!("its log {} ends with\n{}", log.display(), process::log_tail(log)))
            .advise(format!(
                "mend what the log names and run the same command again; `holdfast cluster down --dir {}` stops the others",
                directory.path.display()
            )));
    }
    Ok(())
}

fn report(directory: &Directory, started: usize, output: Output) {
    let file = &directory.file;
    if output == Output::Json {
        return output::json(&serde_json::to_value(file).expect("plain data becomes JSON"));
    }
    output::line(&format!(
        "{} nodes serve {} shards ({} replicas each), {started} started now, in {}",
        file.nodes.len(),
        file.shards,
        file.replication,
        directory.path.display()
    ));
    let rows = file.nodes.iter().map(|node| {
        let pid = node.pid.map_or_else(|| "-".to_owned(), |pid| pid.to_string());
        vec![
            node.id.to_string(),
            pid,
            node.mqtt.to_string(),
            format!("http://{}", node.http),
        ]
    });
    output::table(&["node", "pid", "mqtt", "http"], rows.collect());
    output::line("devices connect without credentials (development mode, loopback only)");
}

/// Shows a summary until Ctrl-C, then stops the nodes.
async fn foreground(
    directory: &mut Directory,
    mut started: Vec<Started>,
    mut progress: Progress,
) -> Result<(), Failure> {
    report(directory, started.len(), Output::Table);
    progress.note("Ctrl-C stops the nodes");
    let mut interrupted = std::pin::pin!(crate::serve::signals::stop_requested());
    loop {
        note_ended(&directory.path, &mut started, &progress);
        let views = view::ask_all(directory).await?;
        progress.say(&view::summary(&views, directory));
        tokio::select! {
            () = &mut interrupted => break,
            () = tokio::time::sleep(SUMMARY_EVERY) => {}
        }
    }
    // Another command may have started or stopped nodes meanwhile.
    *directory = Directory::open(&directory.path)?;
    let stopped = stop::stop_all(directory, &mut progress).await;
    note_ended(&directory.path, &mut started, &progress);
    stopped.map(|_| ())
}

/// Reaps nodes that ended, and says so; nobody starts them again.
fn note_ended(path: &Path, started: &mut Vec<Started>, progress: &Progress) {
    started.retain_mut(|node| match node.child.try_wait() {
        Ok(Some(status)) => {
            let again = format!("holdfast cluster start {} --dir {}", node.id, path.display());
            progress.note(&format!(
                "node {} ended ({status}); start it again with `{again}`",
                node.id
            ));
            false
        }
        _ => true,
    });
}
