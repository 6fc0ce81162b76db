//! `cluster repair --url`: repairs a node of a cluster that other hands keep running. What can be
//! asked of the cluster is done; what must be done on a host is printed, and waited for.
//!
//! Remembers nothing: broken off, it looks again and goes on with what is left.

use std::time::{Duration, Instant};

use reqwest::Method;
use serde_json::{json, Value};

use super::rebalance::{self, look, Ended, GOES_ON};
use super::repair::{remove_dead, RepairArgs};
use super::view::{NodeView, View};
use crate::cli::api::{Client, Request};
use crate::cli::device::client;
use crate::cli::failure::{Exit, Failure};
use crate::cli::output::{self, Output, Progress};

const ASK_EVERY: Duration = Duration::from_millis(500);
const TOKENS: &str = "/api/v1/cluster/tokens";
/// How long somebody may take to start the replacement; its token lives as long.
const JOIN_DEADLINE: Duration = Duration::from_secs(3_600);

/// What is done about the node.
enum Plan {
    Nothing,
    /// It repairs itself.
    Watch,
    Replace {
        reason: String,
    },
}

pub async fn repair(args: &RepairArgs, output: Output) -> Result<(), Failure> {
    let client = client(&args.target)?;
    let view = look(&client).await?;
    let mut progress = Progress::new();
    match plan(args, &view)? {
        Plan::Nothing => say(args.id, output, None, "is whole; there is nothing to repair"),
        Plan::Watch => {
            let whole = |view: &View| view.nodes.iter().any(|node| node.id == args.id && node.state == "up");
            match wait_for(&client, &mut progress, JOIN_DEADLINE, whole, |_| {
                format!("node {} is given its state by the others", args.id)
            })
            .await?
            {
                true => say(args.id, output, None, "was given its state by the others and is whole"),
                false => return Err(broken_off(args)),
            }
        }
        Plan::Replace { reason } => {
            progress.note(&format!("node {}: {reason}", args.id));
            replace(args, &client, view, &mut progress, output).await?;
        }
    }
    Ok(())
}

fn say(id: u64, output: Output, new: Option<u64>, text: &str) {
    match output {
        Output::Table => output::line(&format!("node {id} {text}")),
        Output::Json => output::json(&json!({ "node": id, "replaced_by": new, "healthy": true })),
    }
}

fn plan(args: &RepairArgs, view: &View) -> Result<Plan, Failure> {
    let id = args.id;
    // It has no catalog, and knows nothing of the others.
    let speaks = |node: &&NodeView| view.answered_by == Some(node.id);
    if let Some(damaged) = view.nodes.iter().find(speaks).filter(|node| node.state == "damaged") {
        let what = format!("node {} answers at this address, and is damaged itself", damaged.id);
        return Err(Failure::new(Exit::Usage, what)
            .advise("name the address of another node: a damaged one cannot speak for the cluster"));
    }
    let Some(node) = view.nodes.iter().find(|node| node.id == id) else {
        let known: Vec<String> = view.nodes.iter().map(|node| node.id.to_string()).collect();
        return Err(
            Failure::new(Exit::BadInput, format!("there is no node {id} in this cluster"))
                .because("it never was one, or it has left")
                .advise(format!("name one of {}", known.join(", "))),
        );
    };
    let runs = |what: &str| {
        Failure::new(Exit::BadInput, format!("node {id} is {}; {what}", node.state))
            .advise(format!("stop its process first, or `holdfast cluster remove {id}` it"))
    };
    match (node.state.as_str(), args.replace) {
        ("damaged", _) => Ok(Plan::Replace {
            reason: node.fault.clone().unwrap_or_else(|| "damaged".to_owned()),
        }),
        ("down", true) => Ok(Plan::Replace {
            reason: "it does not answer, and is replaced by request".to_owned(),
        }),
        ("down", false) => Err(Failure::new(
            Exit::Unavailable,
            format!("node {id} does not answer: nobody can say how it is"),
        )
        .advise(format!(
            "start it (`systemctl start holdfast` on its host) and ask again; when its host or disk is lost: `holdfast \
             cluster repair {id} --replace …`"
        ))),
        ("rebuilding", false) => Ok(Plan::Watch),
        (_, true) => Err(runs("only one that does not run is replaced")),
        ("leaving" | "joining", false) => Err(runs("it is not one to repair")),
        _ => Ok(Plan::Nothing),
    }
}

async fn replace(
    args: &RepairArgs,
    client: &Client,
    view: View,
    progress: &mut Progress,
    output: Output,
) -> Result<(), Failure> {
    let id = args.id;
    let mut new = None;
    if needs_a_newcomer(id, &view) {
        let invitation = invite(id, client, &view).await?;
        if args.no_wait {
            show_invitation(id, &invitation, output);
            return Ok(());
        }
        progress.note(&invitation.text(id));
        let joined = |view: &View| !needs_a_newcomer(id, view);
        let left = |left: Duration| {
            let minutes = left.as_secs().div_ceil(60);
            format!("waiting for a node to join in place of node {id}; the token is good for {minutes} min")
        };
        let came = wait_for(client, progress, JOIN_DEADLINE, joined, left).await?;
        // Whoever has come needs it no more.
        let _ = revoke(client, &invitation.token_id).await;
        if !came {
            return Err(broken_off(args));
        }
        let known: Vec<u64> = view.nodes.iter().map(|node| node.id).collect();
        let now = look(client).await?;
        new = now.nodes.iter().map(|node| node.id).find(|id| !known.contains(id));
        if let Some(new) = new {
            progress.note(&format!("node {new} has joined"));
        }
    }
    remove_dead(client, id).await?;
    if args.no_wait {
        say(id, output, new, &format!("is being removed: {GOES_ON}"));
        return Ok(());
    }
    let gone = |view: &View| view.nodes.iter().all(|node| node.id != id);
    let settled = matches!(rebalance::follow(client, gone).await?, Ended::Settled(_));
    say(id, output, new, &ending(new, settled));
    Ok(())
}

fn ending(new: Option<u64>, settled: bool) -> String {
    match (new, settled) {
        (_, false) => format!("is being replaced: {GOES_ON}"),
        (Some(new), true) => format!("was replaced by node {new}; every replica is a full voter again"),
        (None, true) => {
            "has left for ever; the others have its replicas. For as many nodes as before, let one join: `holdfast \
             cluster token create`, then `holdfast cluster rejoin` on its host"
                .to_owned()
        }
    }
}

/// Without it fewer nodes would be left than each shard has replicas.
fn needs_a_newcomer(id: u64, view: &View) -> bool {
    let stays = |node: &&NodeView| node.id != id && !matches!(node.state.as_str(), "joining" | "leaving");
    view.nodes.iter().filter(stays).count() < usize::from(view.replication)
}

/// What lets a node in.
struct Invitation {
    token_id: String,
    token: String,
    until: String,
    join: Vec<String>,
}

impl Invitation {
    fn commands(&self) -> [String; 2] {
        [
            format!(
                "holdfast cluster rejoin --config /etc/holdfast/node.toml --join {} --join-token {}",
                self.join.join(","),
                self.token
            ),
            "systemctl start holdfast".to_owned(),
        ]
    }

    fn text(&self, id: u64) -> String {
        let [rejoin, start] = self.commands();
        format!(
            "a node must join in its place. On the host of node {id} stop its process (`systemctl stop holdfast`), \
             then run there, with the path of its configuration:\n\n    {rejoin}\n    {start}\n\nWithout systemd: \
             `holdfast node --config FILE`. Its data is set aside, not deleted. A new host needs a node.toml of its \
             own first: docs/operations.md. The token admits nodes until {}. \
             What is run again once that process is stopped wants --replace.\n",
            self.until
        )
    }
}

async fn invite(id: u64, client: &Client, view: &View) -> Result<Invitation, Failure> {
    let request = Request {
        path: TOKENS,
        body: Some(("application/json", json!({ "ttl_secs": JOIN_DEADLINE.as_secs() }))),
        ..Request::default()
    };
    let made = client.send(Method::POST, request).await?.body;
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let answers = |node: &&NodeView| node.id != id && matches!(node.state.as_str(), "up" | "draining");
    Ok(Invitation {
        token_id: text(&made["id"]),
        token: text(&made["token"]),
        until: text(&made["expires_at"]),
        join: view
            .nodes
            .iter()
            .filter(answers)
            .map(|node| node.http.clone())
            .collect(),
    })
}

fn show_invitation(id: u64, invitation: &Invitation, output: Output) {
    match output {
        Output::Table => output::line(&invitation.text(id)),
        Output::Json => output::json(&json!({
            "node": id, "replaced_by": null, "healthy": false, "token": invitation.token,
            "expires_at": invitation.until, "join": invitation.join, "commands": invitation.commands(),
        })),
    }
}

async fn revoke(client: &Client, token: &str) -> Result<(), Failure> {
    let path = format!("{TOKENS}/{token}");
    let request = Request {
        path: &path,
        ..Request::default()
    };
    client.send(Method::DELETE, request).await.map(|_| ())
}

fn broken_off(args: &RepairArgs) -> Failure {
    Failure::new(Exit::Unavailable, format!("node {} is not repaired yet", args.id))
        .because("nobody waits for it any more")
        .advise(
            "run it again, it goes on with what is left to do; with --replace once the old process is stopped, for then \
             nobody can say any more how the node is",
        )
}

/// Until `done`; `false` when it was interrupted or takes too long.
async fn wait_for(
    client: &Client,
    progress: &mut Progress,
    patience: Duration,
    done: impl Fn(&View) -> bool,
    say: impl Fn(Duration) -> String,
) -> Result<bool, Failure> {
    let mut interrupted = std::pin::pin!(crate::serve::signals::stop_requested());
    let end = Instant::now() + patience;
    loop {
        match look(client).await {
            Ok(view) if done(&view) => return Ok(true),
            Ok(_) => progress.say(&say(end.saturating_duration_since(Instant::now()))),
            Err(_) => progress.say("the node at this address does not answer; trying again"),
        }
        if Instant::now() >= end {
            return Ok(false);
        }
        tokio::select! {
            () = &mut interrupted => return Ok(false),
            () = tokio::time::sleep(ASK_EVERY) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view(states: &[(u64, &str)], replication: u8) -> View {
        let nodes: Vec<Value> = states
            .iter()
            .map(|(id, state)| json!({"id": id, "state": state, "http": format!("127.0.0.1:{id}")}))
            .collect();
        serde_json::from_value(json!({"nodes": nodes, "replication": replication, "answered_by": 1})).expect("a view")
    }

    #[test]
    fn a_newcomer_is_needed_where_too_few_would_be_left() {
        for (states, needed) in [
            (vec![(1, "up"), (2, "damaged"), (3, "up")], true),
            (vec![(1, "up"), (2, "damaged"), (3, "up"), (4, "joining")], true),
            (vec![(1, "up"), (2, "damaged"), (3, "up"), (4, "up")], false),
            (vec![(1, "up"), (2, "damaged"), (3, "down"), (4, "up")], false),
        ] {
            assert_eq!(needs_a_newcomer(2, &view(&states, 3)), needed, "{states:?}");
        }
    }

    #[test]
    fn only_what_cannot_vouch_for_itself_is_replaced() {
        let decide = |state: &str, replace: bool| {
            let target = crate::cli::device::Target {
                dir: "/nowhere".into(),
                url: Some("http://127.0.0.1:1".to_owned()),
                token: Some("t".to_owned()),
            };
            let args = RepairArgs {
                id: 2,
                replace,
                no_wait: false,
                target,
            };
            match plan(&args, &view(&[(1, "up"), (2, state), (3, "up")], 3)) {
                Ok(Plan::Nothing) => "nothing",
                Ok(Plan::Watch) => "watch",
                Ok(Plan::Replace { .. }) => "replace",
                Err(_) => "refused",
            }
        };
        for (state, replace, decided) in [
            ("up", false, "nothing"),
            ("up", true, "refused"),
            ("down", false, "refused"),
            ("down", true, "replace"),
            ("damaged", false, "replace"),
            ("damaged", true, "replace"),
            ("rebuilding", false, "watch"),
            ("rebuilding", true, "refused"),
            ("leaving", false, "refused"),
        ] {
            assert_eq!(decide(state, replace), decided, "{state} {replace}");
        }
    }
}
