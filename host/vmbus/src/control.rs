// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! The control socket: takes lines from clients to the worker and its answers back.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{sync_channel, Receiver};
use std::sync::Arc;
use std::thread::JoinHandle;

use hvctl::Request;

use crate::inbox::{Client, Inbox, Input};

/// Longest line that is read.
const MAX_LINE: u64 = 1 << 20;
/// Lines that wait for a client to read them; further events are lost to it.
const MAX_WAITING_LINES: usize = 4096;

/// The listening socket and its thread. Dropping it removes the socket.
pub(crate) struct ControlServer {
    path: PathBuf,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl ControlServer {
    /// Listens at `path`; a socket that nobody listens on any more is replaced.
    pub(crate) fn start(path: &Path, inbox: Arc<Inbox>) -> std::io::Result<Self> {
        if UnixStream::connect(path).is_err() {
            // Left behind by a host that was killed. What is no socket is not removed.
            use std::os::unix::fs::FileTypeExt;
            if std::fs::symlink_metadata(path).is_ok_and(|m| m.file_type().is_socket()) {
                std::fs::remove_file(path)?;
            }
        }
        let listener = UnixListener::bind(path)?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = std::thread::Builder::new().name("hv-control".into()).spawn(move || {
            for stream in listener.incoming() {
                if stopped.load(Ordering::Acquire) {
                    break;
                }
                let served = stream.and_then(|stream| serve(stream, inbox.clone()));
                if let Err(e) = served {
                    tracing::warn!("control connection: {e}");
                }
            }
        })?;
        Ok(Self { path: path.to_path_buf(), stop, thread: Some(thread) })
    }
}

impl Drop for ControlServer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        // Ends the wait for a connection.
        let woken = UnixStream::connect(&self.path).is_ok();
        let _ = std::fs::remove_file(&self.path);
        if let (Some(thread), true) = (self.thread.take(), woken) {
            let _ = thread.join();
        }
    }
}

fn serve(stream: UnixStream, inbox: Arc<Inbox>) -> std::io::Result<()> {
    let (lines, queue) = sync_channel(MAX_WAITING_LINES);
    let out = stream.try_clone()?;
    std::thread::Builder::new().name("hv-ctl-out".into()).spawn(move || write_lines(out, &queue))?;
    let client = Client::new(lines);
    std::thread::Builder::new().name("hv-ctl-in".into()).spawn(move || read_lines(stream, &client, &inbox))?;
    Ok(())
}

/// Ends when all senders are gone (reader, waits, watcher) or the client does not take a line.
fn write_lines(mut stream: UnixStream, queue: &Receiver<String>) {
    for line in queue {
        if stream.write_all(line.as_bytes()).is_err() {
            break;
        }
    }
    let _ = stream.shutdown(std::net::Shutdown::Both);
}

fn read_lines(stream: UnixStream, client: &Client, inbox: &Inbox) {
    let mut reader = BufReader::new(stream);
    let mut line = Vec::new();
    loop {
        line.clear();
        match (&mut reader).take(MAX_LINE).read_until(b'\n', &mut line) {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
        if line.last() != Some(&b'\n') && line.len() as u64 >= MAX_LINE {
            client.reply(0, Err(format!("line longer than {MAX_LINE} bytes")));
            return;
        }
        if line.iter().all(u8::is_ascii_whitespace) {
            continue;
        }
        match serde_json::from_slice::<Request>(&line) {
            Ok(Request { id, cmd }) => inbox.push(Input::Control { client: client.clone(), id, cmd }),
            Err(e) => client.reply(request_id(&line), Err(format!("request not understood: {e}"))),
        }
    }
}

/// The id of a request that is JSON but no command.
fn request_id(line: &[u8]) -> u64 {
    serde_json::from_slice::<serde_json::Value>(line)
        .ok()
        .and_then(|v| v.get("id").and_then(serde_json::Value::as_u64))
        .unwrap_or(0)
}
