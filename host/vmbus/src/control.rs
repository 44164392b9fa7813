// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! The control socket: takes lines from clients to the worker and its answers back.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{sync_channel, Receiver};
use std::sync::Arc;
use std::thread::JoinHandle;

use hvctl::Request;
use parking_lot::Mutex;

use crate::inbox::{Client, Inbox, Input};

/// Longest line that is read.
const MAX_LINE: u64 = 1 << 20;
/// Lines that wait for a client to read them; further events are lost to it.
const MAX_WAITING_LINES: usize = 4096;

/// The listening socket and its thread. Dropping it removes the socket.
pub(crate) struct ControlServer {
    path: PathBuf,
    stop: Arc<AtomicBool>,
    connections: Arc<Connections>,
    thread: Option<JoinHandle<()>>,
}

/// The open connections, to be shut when the host ends.
#[derive(Default)]
struct Connections {
    streams: Mutex<HashMap<u64, UnixStream>>,
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
        let connections = Arc::new(Connections::default());
        let open = connections.clone();
        let thread = std::thread::Builder::new()
            .name("hv-control".into())
            .spawn(move || {
                for (n, stream) in (0..).zip(listener.incoming()) {
                    if stopped.load(Ordering::Acquire) {
                        break;
                    }
                    let served =
                        stream.and_then(|stream| serve(n, stream, inbox.clone(), open.clone()));
                    if let Err(e) = served {
                        tracing::warn!("control connection: {e}");
                    }
                }
            })?;
        Ok(Self {
            path: path.to_path_buf(),
            stop,
            connections,
            thread: Some(thread),
        })
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
        for stream in self.connections.streams.lock().values() {
            let _ = stream.shutdown(std::net::Shutdown::Both);
        }
    }
}

fn serve(
    n: u64,
    stream: UnixStream,
    inbox: Arc<Inbox>,
    open: Arc<Connections>,
) -> std::io::Result<()> {
    let (lines, queue) = sync_channel(MAX_WAITING_LINES);
    let out = stream.try_clone()?;
    std::thread::Builder::new()
        .name("hv-ctl-out".into())
        .spawn(move || write_lines(out, &queue))?;
    let client = Client::new(lines);
    open.streams.lock().insert(n, stream.try_clone()?);
    std::thread::Builder::new()
        .name("hv-ctl-in".into())
        .spawn(move || {
            read_lines(stream, &client, &inbox);
            open.streams.lock().remove(&n);
        })?;
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
            Ok(Request { id, cmd }) => inbox.push(Input::Control {
                client: client.clone(),
                id,
                cmd,
            }),
            Err(e) => client.reply(
                request_id(&line),
                Err(format!("request not understood: {e}")),
            ),
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use hvctl::{Command, Error, Event, Until};

    use super::*;
    use crate::testing::{fake_partition, FakeMachine};
    use crate::{Host, HostConfig, StartError};

    const SOON: Duration = Duration::from_secs(10);

    /// A directory that goes away with the test.
    struct Dir(PathBuf);

    impl Dir {
        fn new(name: &str) -> Self {
            let dir =
                std::env::temp_dir().join(format!("hv-control-{name}-{}", std::process::id()));
            std::fs::create_dir_all(&dir).expect("directory");
            Self(dir)
        }

        fn socket(&self) -> PathBuf {
            self.0.join("control")
        }
    }

    impl Drop for Dir {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    fn start(socket: &Path) -> Result<Host, StartError> {
        let config = HostConfig {
            control: Some(socket.into()),
            ..HostConfig::default()
        };
        Host::start(config, fake_partition(2), Arc::new(FakeMachine::default()))
    }

    fn client(dir: &Dir) -> hvctl::Client {
        hvctl::Client::connect(dir.socket()).expect("connects")
    }

    #[test]
    fn commands_go_through_the_socket_and_back() {
        let dir = Dir::new("round");
        let host = start(&dir.socket()).expect("starts");
        let mut client = client(&dir);
        let status = client.status().expect("status");
        assert_eq!(
            (
                status.max_version.as_str(),
                status.vp_count,
                status.connected()
            ),
            ("6.0", 2, false)
        );
        let names: Vec<String> = client
            .channels()
            .expect("channels")
            .into_iter()
            .map(|c| c.device)
            .collect();
        assert_eq!(names, ["heartbeat", "shutdown", "timesync"]);
        assert_eq!(
            client.channel("timesync").expect("timesync").class,
            "9527e630-d0ae-497b-adce-e80ab0175caf"
        );
        assert!(matches!(client.channel("toaster"), Err(Error::Refused(_))));
        assert!(
            matches!(client.rescind("toaster"), Err(Error::Refused(text)) if text.contains("toaster"))
        );
        assert_eq!(client.violations().expect("violations").count, 0);
        let err = client
            .wait(Until::Connected, Duration::from_millis(50))
            .expect_err("nobody connects");
        assert!(err.to_string().contains("timed out"), "{err}");
        client.wait(Until::Disconnected, SOON).expect("holds");
        drop(host);
        assert!(matches!(client.status(), Err(Error::Closed)));
        assert!(!dir.socket().exists());
    }

    #[test]
    fn a_wait_does_not_hold_up_other_requests_or_clients() {
        let dir = Dir::new("wait");
        let _host = start(&dir.socket()).expect("starts");
        let mut stream = UnixStream::connect(dir.socket()).expect("connects");
        stream.set_read_timeout(Some(SOON)).expect("timeout");
        let wait = r#"{"id":1,"cmd":"wait","for":"connected","timeout_ms":300}"#;
        stream
            .write_all(format!("{wait}\n{{\"id\":2,\"cmd\":\"status\"}}\n").as_bytes())
            .expect("sent");
        client(&dir).status().expect("another client");
        let mut lines = BufReader::new(stream)
            .lines()
            .map(|line| line.expect("line"));
        assert!(lines
            .next()
            .expect("status")
            .starts_with(r#"{"id":2,"ok":"#));
        assert!(lines.next().expect("wait").starts_with(r#"{"id":1,"err":"#));
    }

    #[test]
    fn nonsense_gets_a_line_and_kills_nothing() {
        let dir = Dir::new("nonsense");
        let _host = start(&dir.socket()).expect("starts");
        let mut stream = UnixStream::connect(dir.socket()).expect("connects");
        stream.set_read_timeout(Some(SOON)).expect("timeout");
        let nonsense: [&[u8]; 7] = [
            b"hello\n",
            b"{\"id\":7}\n",
            b"{\"id\":7,\"cmd\":\"dance\"}\n",
            b"[1,2,3]\n",
            b"\xff\xfe\x00\n",
            b"{\"id\":7,\"cmd\":\"rescind\"}\n",
            b"{\"id\":7,\"cmd\":\"heartbeat\",\"interval_ms\":-1}\n",
        ];
        for line in nonsense {
            stream.write_all(line).expect("sent");
        }
        stream
            .write_all(b"\n  \n{\"id\":8,\"cmd\":\"status\"}\n")
            .expect("sent");
        let mut lines = BufReader::new(&stream)
            .lines()
            .map(|line| line.expect("line"));
        for line in nonsense {
            let answer = lines.next().expect("an answer");
            assert!(answer.contains("\"err\""), "{answer} to {line:?}");
        }
        assert!(lines
            .next()
            .expect("status")
            .starts_with(r#"{"id":8,"ok":"#));
        drop(lines);
        // A line without an end.
        let mut endless = UnixStream::connect(dir.socket()).expect("connects");
        endless.set_read_timeout(Some(SOON)).expect("timeout");
        // The host stops reading at its limit, so the rest may meet a closed socket.
        let _ = endless.write_all(&vec![b'x'; MAX_LINE as usize + 4096]);
        let mut line = String::new();
        let _ = BufReader::new(endless).read_line(&mut line);
        assert!(line.is_empty() || line.contains("longer than"), "{line}");
        client(&dir).status().expect("still serves");
    }

    #[test]
    fn watchers_get_events_and_leave_without_harm() {
        let dir = Dir::new("watch");
        let host = start(&dir.socket()).expect("starts");
        let mut watch = client(&dir).watch().expect("watches");
        drop(client(&dir).watch().expect("watches"));
        watch.set_limit(Some(SOON)).expect("limit");
        for _ in 0..3 {
            host.sink().guest_crashed();
            assert_eq!(watch.next_event().expect("event"), Event::GuestCrash);
        }
        client(&dir).wait(Until::GuestCrash, SOON).expect("crashed");
    }

    #[test]
    fn a_socket_left_behind_is_replaced_and_one_in_use_is_not() {
        let dir = Dir::new("stale");
        drop(UnixListener::bind(dir.socket()).expect("bind"));
        let host = start(&dir.socket()).expect("replaces what nobody listens on");
        assert!(matches!(
            start(&dir.socket()),
            Err(StartError::Control { .. })
        ));
        client(&dir).status().expect("the first host still serves");
        drop(host);
        std::fs::write(dir.socket(), "a file of the user").expect("write");
        assert!(matches!(
            start(&dir.socket()),
            Err(StartError::Control { .. })
        ));
        assert_eq!(
            std::fs::read(dir.socket()).expect("read"),
            b"a file of the user"
        );
    }

    #[test]
    fn a_client_that_does_not_read_harms_nobody() {
        let dir = Dir::new("deaf");
        let host = start(&dir.socket()).expect("starts");
        let mut deaf = UnixStream::connect(dir.socket()).expect("connects");
        deaf.write_all(b"{\"id\":1,\"cmd\":\"watch\"}\n")
            .expect("sent");
        client(&dir)
            .wait(Until::Disconnected, SOON)
            .expect("the worker is there");
        for _ in 0..50_000 {
            host.sink().guest_crashed();
        }
        assert!(client(&dir).call(Command::Status).is_ok());
    }
}
