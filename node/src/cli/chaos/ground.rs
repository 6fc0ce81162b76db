//! The ground a drill stands on: a cluster and a warden. A cluster of the drill's own is the
//! warden's from the first moment, so that it goes away whatever becomes of the drill.

use std::path::{Path, PathBuf};
use std::time::Duration;

use chaos::deed::{Deed, Outcome};
use chaos::drill::model::ClusterWish;
use chaos::drill::View;
use chaos::run::{look, Ground};
use chaos::site::{Http, HttpError, Site, SiteNode};
use chaos::warden::{state_dir, Handle, Order};

use super::Reach;
use crate::cli::failure::{Exit, Failure};
use crate::cli::local::free_base_port;
use crate::cli::output;

/// What stays to the end of a drill ends with it in any case.
const STAYS: Duration = Duration::from_secs(7 * 86_400);

pub fn program() -> Result<PathBuf, Failure> {
    std::env::current_exe().map_err(|error| Failure::new(Exit::Internal, "no program").because(error))
}

/// A cluster that runs, as far as it is within reach.
///
/// # Errors
/// There is none (69), or the token is refused (65).
pub fn site(reach: &Reach) -> Result<Option<Site>, Failure> {
    if let Some(dir) = &reach.dir {
        let site = Site::local(&program()?, dir, Vec::new());
        let site =
            site.map_err(|error| Failure::new(Exit::Unavailable, "there is no cluster to drill").because(error))?;
        if look(&http(&site)?, &site.nodes).is_none() {
            return Err(
                Failure::new(Exit::Unavailable, "no node of the cluster answers").advise(format!(
                    "start it: holdfast cluster up --dir {} --detach",
                    dir.display()
                )),
            );
        }
        return Ok(Some(site));
    }
    let Some(url) = &reach.url else { return Ok(None) };
    let token = reach.token.clone().ok_or_else(|| {
        Failure::new(Exit::Usage, "--url needs the operator's token").advise("give --token, or set HOLDFAST_TOKEN")
    })?;
    let mut site = Site {
        program: program()?,
        dir: None,
        env: Vec::new(),
        token,
        nodes: Vec::new(),
        mirror: None,
        disk: None,
    };
    let view: View = http(&site)?
        .get(url.trim_end_matches('/'), "/api/v1/cluster")
        .map_err(|error| match error {
            HttpError::Status(401 | 403, _) => Failure::new(Exit::BadInput, "the token is refused").because(error),
            error => Failure::new(Exit::Unavailable, format!("{url} does not tell of a cluster")).because(error),
        })?;
    site.nodes = view
        .nodes
        .into_iter()
        .map(|node| SiteNode {
            id: node.id,
            http: node.http,
            mqtt: node.mqtt,
            zone: node.zone,
        })
        .collect();
    Ok(Some(site))
}

pub fn http(site: &Site) -> Result<Http, Failure> {
    Http::new(&site.token).map_err(|error| Failure::new(Exit::Internal, "no HTTP client").because(error))
}

pub fn warden(site: &Site, log: &Path) -> Result<Handle, Failure> {
    let started = Handle::start(&program()?, &["chaos", "warden"], site, &state_dir(), log);
    started.map_err(|error| {
        Failure::new(Exit::Harness, "no warden, so nothing is broken")
            .because(error)
            .advise(format!(
                "look at {} and whether {} can be written",
                log.display(),
                state_dir().display()
            ))
    })
}

/// A cluster that runs already, with a warden for it.
///
/// # Errors
/// No warden can be had (75).
pub fn existing(site: Site, log: &Path) -> Result<Ground, Failure> {
    let warden = warden(&site, log)?;
    Ok(Ground {
        site,
        warden,
        notes: Vec::new(),
    })
}

/// A cluster for this drill alone.
///
/// # Errors
/// It cannot be started (75); nothing is left behind.
pub fn own(wish: &ClusterWish, base_port: Option<u16>, log: &Path) -> Result<Ground, Failure> {
    let harness = |what: &str, why: &dyn std::fmt::Display| Failure::new(Exit::Harness, what.to_owned()).because(why);
    let root = tempfile::Builder::new().prefix("holdfast-drill-").tempdir();
    let root = root
        .map_err(|error| Failure::disk("no directory for the drill's cluster", &error))?
        .keep();
    let root = root.canonicalize().unwrap_or(root);
    let mut site = Site {
        program: program()?,
        dir: Some(root.join("cluster")),
        env: env(wish),
        token: String::new(),
        nodes: Vec::new(),
        mirror: None,
        disk: None,
    };
    let mut warden = warden(&site, log)?;
    let mut notes = Vec::new();
    let stays = |name: &str, deed: Deed, warden: &mut Handle| -> Result<Outcome, Failure> {
        let order = Order {
            fault: name.to_owned(),
            deeds: vec![deed],
            ttl_ms: STAYS.as_millis() as u64,
            stays: true,
        };
        warden
            .inject(&order)
            .and_then(|()| warden.await_outcome(name))
            .map_err(|error| harness("the warden is gone", &error))
    };
    stays("own-cluster", Deed::Own { dir: root.clone() }, &mut warden)?;
    if let Some(mib) = wish.disk_mib {
        let path = root.join("disk");
        std::fs::create_dir(&path).map_err(|error| Failure::disk("no directory for the small disk", &error))?;
        let mount = Deed::Mount {
            path: path.clone(),
            bytes: mib << 20,
        };
        match stays("small-disk", mount, &mut warden)? {
            Outcome::Installed(_) => {
                site.dir = Some(path.join("cluster"));
                site.disk = Some(path);
            }
            other => notes.push(format!("no small disk: {}", other.why())),
        }
    }
    if wish.power {
        let path = root.join("power");
        std::fs::create_dir(&path).map_err(|error| Failure::disk("no directory for the preloaded library", &error))?;
        match chaos::powercut::prepare(&path) {
            Ok(env) => {
                site.env.extend(env);
                site.mirror = Some(path);
            }
            Err(error) => notes.push(format!("no power cuts: {error}")),
        }
    }
    start(&mut site, wish, base_port)?;
    warden
        .site(&site)
        .map_err(|error| harness("the warden is gone", &error))?;
    Ok(Ground { site, warden, notes })
}

/// A drill's own cluster lets itself be drilled.
fn env(wish: &ClusterWish) -> Vec<(String, String)> {
    let mut env = vec![("HOLDFAST_CHAOS_ALLOW_DRILLS".to_owned(), "true".to_owned())];
    env.extend(wish.env.iter().map(|(name, value)| (name.clone(), value.clone())));
    env
}

fn start(site: &mut Site, wish: &ClusterWish, base_port: Option<u16>) -> Result<(), Failure> {
    let base = match base_port {
        Some(port) => port,
        None => free_base_port(wish.nodes).map_err(|error| Failure::new(Exit::Harness, error.to_string()))?,
    };
    let (nodes, shards, base) = (wish.nodes.to_string(), wish.shards.to_string(), base.to_string());
    let arguments = [
        "cluster",
        "up",
        "--detach",
        "--nodes",
        &nodes,
        "--shards",
        &shards,
        "--base-port",
        &base,
    ];
    let failed = |error| Failure::new(Exit::Harness, "the drill's own cluster does not start").because(error);
    site.command(&arguments).map_err(|error| failed(error.to_string()))?;
    let dir = site.dir.clone().unwrap_or_default();
    let known = Site::local(&site.program, &dir, site.env.clone()).map_err(|error| failed(error.to_string()))?;
    site.token = known.token;
    site.nodes = known.nodes;
    Ok(())
}

/// Ends the warden, and with it whatever was the drill's own.
pub fn leave(ground: Ground) {
    if let Err(error) = ground.warden.end() {
        output::warn(&format!("{error}; `holdfast chaos heal` finishes it"));
    }
}
