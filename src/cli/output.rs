//! Output directories that are whole or not there.
//!
//! Everything is written to a sibling, `NAME.partial`, and renamed at the end; an existing directory is replaced only
//! then. A run that fails removes the sibling, unless it holds a training checkpoint: that stays, and `--resume`
//! continues in it. A file in the sibling is locked by the process that writes it, so that two runs cannot share one, and
//! a leftover of a killed process, whose lock died with it, is recognised.

use std::fs::{self, File, TryLockError};
use std::io::Write as _;
use std::path::{Path, PathBuf};

use secateur::train::checkpoint;
use secateur::{Error, Result};

use super::options::OutputOptions;

/// Locked while the directory is written; holds the number of the writing process, for the message.
const WRITER: &str = "writer.pid";

/// An output directory in the making.
#[derive(Debug)]
pub struct Output {
    target: PathBuf,
    partial: PathBuf,
    committed: bool,
    /// The lock goes with it.
    _writer: File,
}

impl Output {
    /// Claims the directory. `resume` continues in the sibling of an interrupted run, if there is one.
    pub fn create(options: &OutputOptions, resume: bool) -> Result<Output> {
        let target = options.out.clone();
        let Some(name) = target.file_name() else {
            return Err(Error::usage(format!("--out {}: not the name of a directory", target.display())));
        };
        let occupied = match fs::read_dir(&target) {
            Ok(mut entries) => entries.next().is_some(),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => false,
            Err(e) if e.kind() == std::io::ErrorKind::NotADirectory => {
                return Err(Error::usage(format!("--out {} is a file", target.display())));
            }
            Err(e) => return Err(Error::io(&target, "listing")(e)),
        };
        if occupied && !options.overwrite {
            return Err(Error::usage(format!(
                "--out {} exists and is not empty; give another directory, or --overwrite to replace it",
                target.display()
            )));
        }
        let mut partial_name = name.to_os_string();
        partial_name.push(".partial");
        let partial = target.with_file_name(partial_name);
        if partial.is_dir() {
            claim_leftover(&partial, resume, options.overwrite)?;
        }
        fs::create_dir_all(&partial).map_err(Error::io(&partial, "creating"))?;
        let writer = partial.join(WRITER);
        let mut file = File::create(&writer).map_err(Error::io(&writer, "creating"))?;
        if let Err(TryLockError::WouldBlock) = file.try_lock() {
            return Err(Error::usage(format!("{} is being written by another process", partial.display())));
        }
        file.write_all(std::process::id().to_string().as_bytes()).map_err(Error::io(&writer, "writing"))?;
        Ok(Output { target, partial, committed: false, _writer: file })
    }

    /// Where to write.
    pub fn path(&self) -> &Path {
        &self.partial
    }

    /// Everything is there: flushes it to disk and gives it its name.
    pub fn commit(mut self) -> Result<()> {
        remove_checkpoint(&self.partial)?;
        let writer = self.partial.join(WRITER);
        let usual = fs::metadata(&writer).map_err(Error::io(&writer, "reading"))?.permissions();
        flush(&self.partial, &usual)?;
        // An empty directory makes way; a full one is only here with --overwrite.
        let mut old = None;
        if self.target.exists() && fs::remove_dir(&self.target).is_err() {
            let mut name = self.target.file_name().unwrap_or_default().to_os_string();
            name.push(".replaced");
            let aside = self.target.with_file_name(name);
            fs::rename(&self.target, &aside).map_err(Error::io(&self.target, "renaming"))?;
            old = Some(aside);
        }
        fs::rename(&self.partial, &self.target).map_err(Error::io(&self.target, "renaming"))?;
        self.committed = true;
        // Only now: at every moment before, the directory is known as this process's, should it be killed.
        let writer = self.target.join(WRITER);
        fs::remove_file(&writer).map_err(Error::io(&writer, "removing"))?;
        match old {
            Some(old) => fs::remove_dir_all(&old).map_err(Error::io(&old, "removing")),
            None => Ok(()),
        }
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        if self.committed {
            return;
        }
        let _ = fs::remove_file(self.partial.join(WRITER));
        if !has_checkpoint(&self.partial) {
            let _ = fs::remove_dir_all(&self.partial);
        }
    }
}

/// What an earlier run left: refused while that run lives, kept for `--resume`, removed otherwise.
fn claim_leftover(partial: &Path, resume: bool, overwrite: bool) -> Result<()> {
    let writer = partial.join(WRITER);
    let ours = writer.is_file();
    if let Ok(file) = File::open(&writer)
        && let Err(TryLockError::WouldBlock) = file.try_lock()
    {
        let pid = fs::read_to_string(&writer).unwrap_or_default();
        return Err(Error::usage(format!("{} is being written by process {pid}", partial.display())));
    }
    if has_checkpoint(partial) {
        if resume {
            return keep_checkpoints(partial);
        }
        if !overwrite {
            let message = format!(
                "{} holds the checkpoint of an interrupted run; continue it with --resume, or start over with \
                 --overwrite",
                partial.display()
            );
            return Err(Error::usage(message));
        }
    } else if !ours && fs::read_dir(partial).is_ok_and(|mut entries| entries.next().is_some()) {
        // Nothing says that this is ours to remove.
        let message = format!("{} exists and is in the way; move or remove it", partial.display());
        return Err(Error::usage(message));
    }
    fs::remove_dir_all(partial).map_err(Error::io(partial, "removing"))
}

/// Removes what a killed run had written beside its checkpoints: all of it is written again, and what is half written
/// under a temporary name would otherwise stay for ever.
fn keep_checkpoints(partial: &Path) -> Result<()> {
    for entry in fs::read_dir(partial).map_err(Error::io(partial, "listing"))? {
        let entry = entry.map_err(Error::io(partial, "listing"))?;
        if entry.file_name() == CHECKPOINTS {
            continue;
        }
        let path = entry.path();
        let removed = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        removed.map_err(Error::io(&path, "removing"))?;
    }
    Ok(())
}

/// Whether some directory inside holds a training checkpoint.
fn has_checkpoint(directory: &Path) -> bool {
    let Ok(entries) = fs::read_dir(directory) else { return false };
    entries.flatten().any(|entry| {
        let path = entry.path();
        let kept = path.is_dir() && entry.file_name() != FINISHED;
        entry.file_name() == checkpoint::FILE_NAME || (kept && has_checkpoint(&path))
    })
}

/// Name of the folder of checkpoints inside an output directory.
pub const CHECKPOINTS: &str = "checkpoints";

/// Its name once they are no longer needed.
const FINISHED: &str = "checkpoints.finished";

/// Checkpoints go at once, by a renaming: a process that is killed while it removes their files must not leave some of
/// them to be resumed from.
fn remove_checkpoint(directory: &Path) -> Result<()> {
    let (path, finished) = (directory.join(CHECKPOINTS), directory.join(FINISHED));
    if path.exists() {
        fs::rename(&path, &finished).map_err(Error::io(&path, "renaming"))?;
        fs::remove_dir_all(&finished).map_err(Error::io(&finished, "removing"))?;
    }
    Ok(())
}

/// Makes the files of a directory durable, so that a full disk is found before the rename, and gives them the `usual`
/// permissions: files that were made as temporary ones are closed to everybody else.
fn flush(directory: &Path, usual: &fs::Permissions) -> Result<()> {
    for entry in fs::read_dir(directory).map_err(Error::io(directory, "listing"))? {
        let path = entry.map_err(Error::io(directory, "listing"))?.path();
        if path.is_dir() {
            flush(&path, usual)?;
        } else {
            let file = fs::File::open(&path).map_err(Error::io(&path, "opening"))?;
            file.sync_all().map_err(Error::io(&path, "writing"))?;
            fs::set_permissions(&path, usual.clone()).map_err(Error::io(&path, "opening to readers"))?;
        }
    }
    Ok(())
}
