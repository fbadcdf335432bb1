//! Commands of this program as child processes.
//!
//! A child is a process group of its own, so that a signal of the terminal reaches this process alone, which passes it on:
//! then it arrives exactly once, whoever sent it and to whom. Twice would mean "stop at once", and lose work.

use std::io;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use secateur::Result;

use super::super::context::Context;

/// How often running children are looked at.
pub const POLL: Duration = Duration::from_millis(100);

/// Starts a child that reads nothing.
pub fn start(command: &mut Command) -> io::Result<Child> {
    #[cfg(unix)]
    std::os::unix::process::CommandExt::process_group(command, 0);
    command.stdin(Stdio::null()).spawn()
}

/// Asks a child to save its work and end, as Ctrl-C would.
pub fn interrupt(child: &mut Child) {
    #[cfg(unix)]
    if let Ok(id) = i32::try_from(child.id()) {
        use nix::sys::signal::{Signal, kill};
        // It may have ended by itself; it has not been waited for, so the number is still its own.
        let _ = kill(nix::unistd::Pid::from_raw(id), Signal::SIGINT);
    }
    #[cfg(not(unix))]
    let _ = child.kill();
}

/// Waits for a child; interrupts it when this process is.
pub fn wait(context: &Context, mut child: Child) -> Result<io::Result<ExitStatus>> {
    loop {
        match child.try_wait() {
            Ok(None) => {}
            Ok(Some(status)) => return Ok(Ok(status)),
            Err(error) => return Ok(Err(error)),
        }
        if let Err(stopped) = context.progress.check(|| "the same command continues".into()) {
            interrupt(&mut child);
            let _ = child.wait();
            return Err(stopped);
        }
        std::thread::sleep(POLL);
    }
}
