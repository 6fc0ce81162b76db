//! `cluster rebalance`: has replicas spread evenly, and follows how far that is. The moving itself
//! is the cluster's business; whoever watches may go.

use std::time::{Duration, Instant};

use clap::Args;
use reqwest::Method;
use serde_json::{json, Value};

use super::view::{MoveView, View};
use crate::cli::api::{Client, Request};
use crate::cli::device::{client, Target};
use crate::cli::failure::{Exit, Failure};
use crate::cli::output::{self, Output, Progress};

/// How often the cluster is asked how far it is.
const ASK_EVERY: Duration = Duration::from_millis(500);
/// How long nobody may answer.
const SILENCE_MAX: Duration = Duration::from_secs(60);
/// How long nothing may move. A large shard takes its time to be copied.
const STANDSTILL_MAX: Duration = Duration::from_secs(600);

#[derive(Args, Clone, Debug)]
pub struct RebalanceArgs {
    /// Replicas each shard shall have from now on; as many as there are nodes for
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=7))]
    replication: Option<u8>,
    /// Return at once; the moving goes on
    #[arg(long)]
    no_wait: bool,
    #[command(flatten)]
    target: Target,
}

pub async fn rebalance(args: RebalanceArgs, output: Output) -> Result<(), Failure> {
    let client = client(&args.target)?;
    let started = start(&client, args.replication).await?;
    if args.no_wait {
        return match output {
            Output::Table => {
                output::line(&format!("{} replicas are to be moved", started["replicas"]));
                Ok(())
            }
            Output::Json => {
                output::json(&started);
                Ok(())
            }
        };
    }
    let ended = follow(&client, |_| true).await?;
    say(output, &ended, &started);
    let now = started["replication"].as_u64();
    if let (Some(wanted), Some(now), Output::Table) = (args.replication.map(u64::from), now, output) {
        if now < wanted {
            output::line(&format!(
                "{wanted} were asked for: the cluster grows into them as nodes are added"
            ));
        }
    }
    Ok(())
}

fn say(output: Output, ended: &Ended, started: &Value) {
    let moved = started["replicas"].as_u64().unwrap_or(0);
    match (output, ended) {
        (Output::Json, ended) => output::json(&json!({
            "replicas": moved, "replication": started["replication"], "settled": matches!(ended, Ended::Settled(_)),
        })),
        (Output::Table, Ended::Settled(view)) => output::line(&format!(
            "{moved} replicas moved; every shard has {} replicas where they shall be",
            view.replication
        )),
        (Output::Table, Ended::Interrupted) => output::line(GOES_ON),
    }
}

pub const GOES_ON: &str = "the moving goes on by itself; `holdfast cluster rebalance` shows how far it is";

/// # Errors
/// Nobody answers, or it is refused.
pub async fn start(client: &Client, replication: Option<u8>) -> Result<Value, Failure> {
    let body = replication.map(|replication| ("application/json", json!({ "replication": replication })));
    let request = Request {
        path: "/api/v1/cluster/rebalance",
        body,
        ..Request::default()
    };
    Ok(client.send(Method::POST, request).await?.body)
}

pub enum Ended {
    /// Every replica is where it shall be.
    Settled(Box<View>),
    /// Whoever watched wants to go.
    Interrupted,
}

/// Shows how far the moving is until all is settled and `done` agrees.
///
/// # Errors
/// Nobody answers for a minute, or nothing moves for ten.
pub async fn follow(client: &Client, done: impl Fn(&View) -> bool) -> Result<Ended, Failure> {
    let mut progress = Progress::new();
    let mut interrupted = std::pin::pin!(crate::serve::signals::stop_requested());
    let (mut heard, mut moved) = (Instant::now(), Instant::now());
    let mut last = String::new();
    loop {
        match look(client).await {
            Ok(view) => {
                heard = Instant::now();
                if view.moves.is_empty() && view.rebalance.is_none() && done(&view) {
                    return Ok(Ended::Settled(Box::new(view)));
                }
                let now = state_of(&view);
                if now != last {
                    (last, moved) = (now, Instant::now());
                }
                progress.say(&describe(&view));
            }
            Err(failure) if heard.elapsed() > SILENCE_MAX => return Err(failure),
            Err(_) => progress.say("no node answers; trying again"),
        }
        if moved.elapsed() > STANDSTILL_MAX {
            let what = format!("nothing has moved for {} s", STANDSTILL_MAX.as_secs());
            return Err(Failure::new(Exit::Unavailable, what).because(last).advise(
                "see `holdfast cluster status` for nodes that are down; the moving goes on when they are back",
            ));
        }
        tokio::select! {
            () = &mut interrupted => return Ok(Ended::Interrupted),
            () = tokio::time::sleep(ASK_EVERY) => {}
        }
    }
}

/// # Errors
/// Nobody answers.
pub async fn look(client: &Client) -> Result<View, Failure> {
    let body = client.get("/api/v1/cluster").await?.body;
    serde_json::from_value(body)
        .map_err(|error| Failure::new(Exit::Internal, "the cluster's answer makes no sense").because(error))
}

/// What changes when something moves.
fn state_of(view: &View) -> String {
    let done = view.rebalance.as_ref().map_or(0, |moving| moving.replicas_done);
    let states: Vec<String> = view.moves.iter().map(show).collect();
    format!("{done} replicas are there; left: {}", states.join(", "))
}

fn show(each: &MoveView) -> String {
    let group = each
        .shard
        .map_or_else(|| "the catalog".to_owned(), |shard| format!("shard {shard}"));
    format!("{group} {} (to {:?}, off {:?})", each.state, each.add, each.remove)
}

fn describe(view: &View) -> String {
    let copying = view.moves.iter().filter(|each| each.state == "copying").count();
    match &view.rebalance {
        Some(moving) if moving.replicas_total > 0 => {
            // In steps of five seconds: every change is a line where there is no terminal.
            let left = moving
                .seconds_left
                .map(|left| format!(", about {} s left", left.div_ceil(5) * 5));
            format!(
                "moving: {} of {} replicas are there, {copying} being copied{}",
                moving.replicas_done,
                moving.replicas_total,
                left.unwrap_or_default()
            )
        }
        _ => "moving: the last steps".to_owned(),
    }
}
