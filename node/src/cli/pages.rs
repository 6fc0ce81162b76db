//! `holdfast completions` and `holdfast man`: made from the same description as the parser, so
//! that they cannot disagree with it.

use std::fs;
use std::path::{Path, PathBuf};

use clap::{Args, Command};
use clap_complete::Shell;

use super::failure::{Exit, Failure};
use super::output::{self, Output};

#[derive(Args, Clone, Debug)]
#[command(
    after_help = "Example:\n  holdfast completions bash > ~/.local/share/bash-completion/completions/holdfast",
    after_long_help = "Examples:\n  holdfast completions bash > ~/.local/share/bash-completion/completions/holdfast\n  holdfast completions zsh > ~/.zfunc/_holdfast        (with `fpath+=~/.zfunc` before compinit)\n  holdfast completions fish > ~/.config/fish/completions/holdfast.fish\n\nExit codes: 0 written to standard output; 64 another shell."
)]
pub struct CompletionsArgs {
    /// For which shell
    #[arg(value_enum)]
    shell: Shell,
}

#[derive(Args, Clone, Debug)]
#[command(
    after_help = "Example:\n  holdfast man --dir /usr/local/share/man/man1",
    after_long_help = "Examples:\n  holdfast man --dir ./man && man -l ./man/holdfast-cluster-up.1\n  holdfast man --dir /usr/local/share/man/man1     for everybody on this machine\n\nExit codes: 0 written; 74 the directory cannot be written."
)]
pub struct ManArgs {
    /// Directory for the pages, one per command: holdfast.1, holdfast-cluster-up.1, …; its last
    /// part is made if it is missing
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
}

pub fn completions(args: &CompletionsArgs, mut command: Command) {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut command, "holdfast", &mut script);
    output::text(&String::from_utf8_lossy(&script));
}

/// # Errors
/// The directory cannot be written (74).
pub fn man(args: &ManArgs, command: Command, output: Output) -> Result<(), Failure> {
    super::cluster::make_directory(&args.dir)?;
    let mut command = command.disable_help_subcommand(true);
    command.build();
    let mut pages = Vec::new();
    write_pages(&args.dir, command, "holdfast", &mut pages)?;
    match output {
        Output::Table => output::line(&format!("{} pages are in {}", pages.len(), args.dir.display())),
        Output::Json => output::json(&serde_json::json!({ "dir": args.dir, "pages": pages })),
    }
    Ok(())
}

/// A page for the command and one for each below it, named `holdfast-a-b.1`.
fn write_pages(dir: &Path, command: Command, name: &str, pages: &mut Vec<String>) -> Result<(), Failure> {
    for below in command.get_subcommands().filter(|below| !below.is_hide_set()) {
        let name = format!("{name}-{}", below.get_name());
        write_pages(dir, below.clone(), &name, pages)?;
    }
    let version = env!("CARGO_PKG_VERSION");
    let command = command.display_name(name.to_owned()).version(version);
    let page = clap_mangen::Man::new(command)
        .title(name)
        .source(format!("holdfast {version}"))
        .manual("Holdfast");
    let mut text = Vec::new();
    let rendered = page.render(&mut text);
    rendered.map_err(|e| Failure::new(Exit::Internal, format!("no page for {name}")).because(e))?;
    // clap calls what follows the options "EXTRA"; readers of man pages look for notes.
    let text = String::from_utf8_lossy(&text).replace(".SH EXTRA", ".SH NOTES");
    let file = format!("{name}.1");
    let path = dir.join(&file);
    fs::write(&path, text).map_err(|e| Failure::disk(format!("cannot write {}", path.display()), &e))?;
    pages.push(file);
    Ok(())
}
