//! What `--help` and the man pages say beyond the options: why one would use a command, and how
//! it ends. `-h` stays short.
//!
//! Laid over the commands as they are declared, so that no command can be without it.

use clap::Command;

/// Why and when, by command. One that is declared with a long text of its own keeps that.
const PROSE: &[(&str, &str)] = &[
    ("demo", "Starts three nodes as real processes, lets a fleet of simulated devices publish, ends one node with kill -9 in the middle, reads everything back, and says whether anything that was acknowledged is missing, doubled or out of order. Everything is removed afterwards."),
    ("bench", "Measures what this machine's disk and loopback can do, then Holdfast on it, beside Mosquitto where that is installed: throughput, latency, CPU per message, memory per connection, how long writes pause in a failover, how long a restart takes. Takes minutes; use the machine for nothing else meanwhile."),
    ("sim run", "Drives the fleets of a scenario (holdfast sim init writes one) against a cluster or any MQTT broker. Every message has an intended time from the scenario's seed, and latency counts from it, whatever the server does meanwhile. Everything is recorded in DIR; afterwards the cluster is read back, and report.html, report.json and junit.xml are written. Ctrl-C stops sending, waits for what is outstanding, and judges what there is; a second one gives up waiting."),
    ("sim check", "Reads a scenario as `sim run` does and lists every mistake at once with line and key; of a sound one it tells what it would do. Nothing is connected."),
    ("sim init", "Writes a scenario that runs as it is against `holdfast cluster up` and explains each key."),
    ("sim profiles", "Kinds of devices that a fleet can name. Each is a TOML file: copy it under [profile.NAME] of a scenario to change it."),
    ("sim schema", "JSON Schema of scenario files, made from the types that read them. Editors complete and check with it."),
    ("sim report", "Computes everything again from the recorded history in DIR and writes report.html, report.json and junit.xml. The cluster is not needed; what an audit found earlier is taken over."),
    ("sim history", "Prints the history of a run as JSON Lines, thread by thread in the order of recording: kind, device, number, times in µs since the run began (intended, sent, done), outcome, seq or version, receipt. Any other checker can judge by it; a run of any length is read with a little memory."),
    ("sim audit", "Reads everything the run recorded back from the cluster, judges it anew, and writes the reports again."),
    ("chaos run", "Runs a failure drill: load, faults by plan, heal, and a verdict. DRILL is a file, or the name of one that ships (holdfast chaos list). Without --dir or --url it starts a cluster of its own and removes it afterwards; with --dir it drills a local cluster with its processes and files, with --url one that is known by address only, where nodes whose configuration allows drills take fault leases. Whatever ends it (Ctrl-C, a crash, kill -9), a detached warden undoes every fault. A directory with history, fault log, node logs and report.html is left."),
    ("chaos check", "Reads a drill as `chaos run` does and lists every mistake at once with line and key. Nothing is started."),
    ("chaos list", "The catalogue: every fault with what it does, by which mechanism, what it needs and how it heals; and the drills that ship."),
    ("chaos init", "Writes a drill to start from. --drill copies one that ships."),
    ("chaos heal", "Finishes what wardens of this user could not: undoes everything that their journals say is still broken. Wardens that live are told to heal and end. With --dir or --url also every fault lease on the nodes is deleted."),
    ("chaos inject", "One fault by hand, for a length of time. Ctrl-C heals it at once, and so does the death of this command."),
    ("chaos report", "Makes report.html of a drill again, and prints its verdict."),
    ("dev", "One node with everything on, in this process: no replication, devices are registered by their first connection, no credentials, this machine only. Prints addresses, token, and a first command to try. Ctrl-C ends it."),
    ("node", "Runs one node in the foreground, under a supervisor such as systemd (deploy/systemd/holdfast.service). Logs go to stderr. SIGTERM or SIGINT stops it gracefully: what was received is answered, leaderships are handed over, the state is flushed. SIGHUP reads the configuration again."),
    ("cluster up", "Makes a cluster in DIR the first time: addresses, secrets, one directory and one process per node. Afterwards it starts what does not run, with the same ids, ports and data, also after a crash of everything. It restarts nothing by itself later. Addresses, pids and the operator token stand in DIR/cluster.json. The nodes inherit the environment, so HOLDFAST_SECTION_KEY variables configure them."),
    ("cluster start", "Starts one node of the cluster in DIR that does not run, and says how it is: it serves, or it runs and does not (drained, being rebuilt, damaged, or waiting for others for longer than 8 s). Starting one that runs changes nothing."),
    ("cluster stop", "Sends SIGTERM and waits: the node answers what it has received, hands its leaderships over and flushes its state. Drain it first, and no request fails."),
    ("cluster down", "Stops every node gracefully. The data stays."),
    ("cluster status", "Asks every node and shows what a person who is responsible should know: nodes, shards, who leads, who lags, and worries with what to do, the serious first. Works while nodes are down."),
    ("cluster drain", "Marks the node in the catalog: its leaderships move to other replicas, then its connections are closed gently, and clients are told to go elsewhere. Its replicas stay, so durability is as before."),
    ("cluster undrain", "Takes the mark of `drain` away. Leaderships and connections come back by themselves."),
    ("device create", "Registers a device. Devices connect with their id as MQTT client id; where devices.auto_register is on, the first connection registers them as well. Refuses an id that is registered already."),
    ("device get", "Shows registration, shard, connection and telemetry of one device, as of now: the answer is linearizable."),
    ("device list", "Lists devices over all shards in the order of their ids. Filters are terms joined by `and`: status=enabled|disabled, connected=true|false, id=prefix*."),
    ("device update", "Changes the registration of a device. With --etag only if nobody changed it meanwhile."),
    ("device delete", "Removes registration, twin and stored telemetry of a device, and disconnects it. There is no way back."),
    ("device enable", "Lets a disabled device connect again."),
    ("device disable", "Disconnects a device and refuses its connections until it is enabled. Twin and telemetry stay."),
    ("device twin", "Without a patch it shows the twin: tags and desired properties, which operators write, and reported ones, which the device writes. With --desired or --tags it changes them by JSON merge patch; a connected device hears of desired properties at once, another one when it connects."),
    ("device telemetry", "Prints stored messages in the order of their seq, which has no gaps. Bodies that are JSON are shown as JSON, others as base64."),
];

/// How commands end, by the beginning of their path; the longest that fits counts.
const ENDS: &[(&str, &str)] = &[
    ("", "0 done; 64 the command line makes no sense; 65 a file or value is refused; 69 nothing answers, or a port is taken; 70 a bug in holdfast; 74 the disk"),
    ("bench", "0 measured; 64 the command line makes no sense; 75 the measurement failed, which says nothing about the product"),
    ("demo", "0 nothing acknowledged was lost; 1 something was; 64 the command line makes no sense; 75 the demo itself failed, which says nothing about the product"),
    ("dev", "0 stopped; 64 the command line makes no sense; 65 the directory holds something else; 69 a port or the directory is in use; 70 a bug; 74 the disk"),
    ("node", "0 stopped; 64 the command line makes no sense; 65 the configuration is refused; 69 a port or the directory is in use; 70 a bug, or a second signal; 74 the disk: no permission, full, failed, damaged, or somebody else's directory"),
    ("device", "0 done; 64 the command line makes no sense; 65 refused: no such device, it exists already, a wrong etag, token or value; 69 no node answers, nothing was done, or the outcome is unknown (the text says which)"),
    ("sim", "0 passed, or done; 1 a promise or a threshold was broken; 64 the command line makes no sense; 65 the scenario is refused; 69 nothing answers; 74 the disk; 75 no verdict: stopped, incomplete, or this machine is too small"),
    ("chaos", "0 passed, or done; 1 an invariant or a hypothesis was broken; 64 the command line makes no sense; 65 the drill is refused; 69 nothing answers, or the fault was skipped; 74 the disk; 75 harness failure: the bench broke, was interrupted, or something could not be healed"),
    ("cluster status", "0 all is well, or nothing serious; 65 cluster.json is damaged; 69 something does not serve, or there is no cluster"),
];

/// The command and all below it, with their prose and ends.
pub fn complete(command: Command) -> Command {
    below(command.bin_name("holdfast"), "")
}

fn below(command: Command, path: &str) -> Command {
    if command.has_subcommands() {
        return command.mut_subcommands(|sub| {
            let path = format!("{path} {}", sub.get_name());
            below(sub, path.trim_start())
        });
    }
    let mut command = command;
    if command.get_long_about().is_none() {
        if let (Some((_, prose)), Some(about)) = (PROSE.iter().find(|(name, _)| *name == path), command.get_about()) {
            let long = format!("{about}\n\n{prose}");
            command = command.long_about(long);
        }
    }
    let after = command.get_after_long_help().or(command.get_after_help());
    let mut after = after.map(ToString::to_string).unwrap_or_default();
    if !after.contains("Exit codes:") {
        after = format!("{}\n\nExit codes: {}.", after.trim_end(), ends(path));
    }
    command.after_long_help(after)
}

fn ends(path: &str) -> &'static str {
    let fits = |name: &str| name.is_empty() || path == name || path.starts_with(&format!("{name} "));
    let best = ENDS
        .iter()
        .filter(|(name, _)| fits(name))
        .max_by_key(|(name, _)| name.len());
    best.map_or("", |(_, text)| text)
}

#[cfg(test)]
mod tests {
    use super::super::command;
    use super::*;

    fn leaves(command: &Command, path: &str, each: &mut impl FnMut(&str, &Command)) {
        for sub in command.get_subcommands() {
            let path = format!("{path} {}", sub.get_name());
            match sub.has_subcommands() {
                true => leaves(sub, &path, each),
                false => each(path.trim_start(), sub),
            }
        }
    }

    /// A page that is fit to be printed: why, an example, what each option means, how it ends.
    #[test]
    fn every_command_has_a_whole_page() {
        leaves(&command(), "", &mut |path, command| {
            let after = command
                .get_after_long_help()
                .map(ToString::to_string)
                .unwrap_or_default();
            assert!(after.contains("Example"), "{path} has no example");
            assert!(after.contains("Exit codes:"), "{path} does not say how it ends");
            assert!(command.get_about().is_some(), "{path} does not say what it does");
            for argument in command.get_arguments() {
                let help = argument.get_help().map(ToString::to_string).unwrap_or_default();
                assert!(!help.is_empty(), "{path}: {} is not explained", argument.get_id());
            }
        });
    }

    #[test]
    fn prose_belongs_to_commands_that_exist() {
        let mut known = Vec::new();
        leaves(&command(), "", &mut |path, _| known.push(path.to_owned()));
        for (path, _) in PROSE {
            assert!(known.iter().any(|known| known == path), "there is no command {path}");
        }
    }

    #[test]
    fn the_longest_beginning_that_fits_counts() {
        assert_eq!(ends("cluster status"), ENDS[8].1);
        assert_eq!(ends("cluster up"), ENDS[0].1);
        assert_eq!(ends("device get"), ENDS[5].1);
        assert_eq!(ends("devices"), ENDS[0].1);
    }
}
