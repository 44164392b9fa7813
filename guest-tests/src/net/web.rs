// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! A web server on this machine's loopback, for transfers whose content is known at both ends.

use std::io::{self, Read};
use std::net::{Ipv6Addr, SocketAddr};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{anyhow, bail, Result};
use sha2::{Digest, Sha256};
use tiny_http::{Method, Request, Response, Server, StatusCode};

/// Requests that are served at a time.
const THREADS: usize = 4;

/// The server. `GET /SIZE/SEED` gives that many bytes that look random, always the same; what is PUT or POSTed anywhere is
/// taken, and its sum is told by [`Web::upload`].
pub struct Web {
    servers: Vec<Arc<Server>>,
    port: u16,
    uploads: Mutex<Receiver<Upload>>,
}

/// What was sent to the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Upload {
    /// Its path.
    pub path: String,
    /// Bytes that came.
    pub bytes: u64,
    /// Their SHA-256, in hexadecimal.
    pub sha256: String,
    /// Why not all came, if so.
    pub error: Option<String>,
}

impl Web {
    /// Starts the server on a free port of 127.0.0.1 and, where the machine has IPv6, the same port of `::1`.
    ///
    /// # Errors
    /// When there is no such port.
    pub fn start() -> Result<Self> {
        let (tx, uploads) = mpsc::channel();
        let first = Arc::new(bind(SocketAddr::from(([127, 0, 0, 1], 0)))?);
        let Some(address) = first.server_addr().to_ip() else {
            bail!("the server has no address");
        };
        let port = address.port();
        let mut servers = vec![first];
        if let Ok(second) = bind(SocketAddr::from((Ipv6Addr::LOCALHOST, port))) {
            servers.push(Arc::new(second));
        }
        for server in &servers {
            for _ in 0..THREADS {
                let (server, tx) = (server.clone(), tx.clone());
                thread::spawn(move || {
                    for request in server.incoming_requests() {
                        // An error is the client's end of the connection, which sees it, too.
                        let _ = serve(request, &tx);
                    }
                });
            }
        }
        Ok(Self {
            servers,
            port,
            uploads: Mutex::new(uploads),
        })
    }

    /// Its port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Whether it is there in IPv6, too.
    pub fn ipv6(&self) -> bool {
        self.servers.len() > 1
    }

    /// Waits for the end of the next upload.
    ///
    /// # Errors
    /// When there is none in time.
    pub fn upload(&self, limit: Duration) -> Result<Upload> {
        let uploads = self.uploads.lock().unwrap_or_else(PoisonError::into_inner);
        uploads.recv_timeout(limit).map_err(|err| match err {
            RecvTimeoutError::Timeout => anyhow!("no upload within {} s", limit.as_secs()),
            RecvTimeoutError::Disconnected => anyhow!("the server has ended"),
        })
    }

    /// The SHA-256 of what `GET /SIZE/SEED` gives, in hexadecimal.
    pub fn sha256(size: u64, seed: u64) -> String {
        let mut sum = Sha256::new();
        // Never fails: there is no I/O in it.
        let _ = io::copy(&mut Noise::new(size, seed), &mut sum);
        hex(sum)
    }
}

impl Drop for Web {
    fn drop(&mut self) {
        for server in &self.servers {
            for _ in 0..THREADS {
                server.unblock();
            }
        }
    }
}

fn bind(address: SocketAddr) -> Result<Server> {
    Server::http(address).map_err(|err| anyhow!("{address}: {err}"))
}

fn hex(sum: Sha256) -> String {
    super::hex(&sum.finalize())
}

fn serve(mut request: Request, uploads: &Sender<Upload>) -> io::Result<()> {
    match request.method() {
        Method::Get => {
            let mut parts = request.url().split('/').skip(1).map(str::parse);
            let (Some(Ok(size)), Some(Ok(seed))) = (parts.next(), parts.next()) else {
                return request.respond(Response::empty(404));
            };
            let length = usize::try_from(size).ok();
            let body = Noise::new(size, seed);
            let response = Response::new(StatusCode(200), Vec::new(), body, length, None)
                // As it is: a body of known length is not cut into chunks.
                .with_chunked_threshold(usize::MAX);
            request.respond(response)
        }
        Method::Put | Method::Post => {
            let path = request.url().to_owned();
            let expected = request.body_length();
            let mut sum = Sha256::new();
            let copied = io::copy(request.as_reader(), &mut sum);
            let mut upload = Upload {
                path,
                bytes: *copied.as_ref().unwrap_or(&0),
                sha256: hex(sum),
                error: copied.err().map(|err| err.to_string()),
            };
            if let Some(expected) = expected.filter(|&length| length as u64 != upload.bytes) {
                upload
                    .error
                    .get_or_insert(format!("{expected} bytes were announced"));
            }
            let _ = uploads.send(upload);
            request.respond(Response::empty(204))
        }
        _ => request.respond(Response::empty(405)),
    }
}

/// Bytes that look random, from a seed (the generator is SplitMix64).
struct Noise {
    left: u64,
    state: u64,
    word: [u8; 8],
    at: usize,
}

impl Noise {
    fn new(size: u64, seed: u64) -> Self {
        Self {
            left: size,
            state: seed,
            word: [0; 8],
            at: 8,
        }
    }
}

impl Read for Noise {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        let count = usize::try_from(self.left)
            .unwrap_or(usize::MAX)
            .min(to.len());
        for byte in &mut to[..count] {
            if self.at == 8 {
                self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
                let mut z = self.state;
                z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
                z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
                self.word = (z ^ (z >> 31)).to_le_bytes();
                self.at = 0;
            }
            *byte = self.word[self.at];
            self.at += 1;
        }
        self.left -= count as u64;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::net::TcpStream;

    #[test]
    fn noise_has_its_length_and_depends_on_its_seed() {
        let all = |size, seed| {
            let mut bytes = Vec::new();
            Noise::new(size, seed).read_to_end(&mut bytes).unwrap();
            bytes
        };
        let bytes = all(1001, 1);
        assert_eq!(bytes.len(), 1001);
        assert_eq!(bytes[..1000], all(1000, 1));
        assert_ne!(bytes, all(1001, 2));
        assert_ne!(Web::sha256(1001, 1), Web::sha256(1001, 2));
    }

    #[test]
    fn both_directions() {
        let web = Web::start().unwrap();
        let ask = |text: &str, body: &[u8]| {
            let mut stream = TcpStream::connect(("127.0.0.1", web.port())).unwrap();
            stream.write_all(text.as_bytes()).unwrap();
            stream.write_all(body).unwrap();
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer).unwrap();
            let head = answer
                .windows(4)
                .position(|four| four == b"\r\n\r\n")
                .unwrap();
            (
                String::from_utf8_lossy(&answer[..head]).into_owned(),
                answer[head + 4..].to_vec(),
            )
        };
        let (head, body) = ask(
            "GET /100000/5 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
            b"",
        );
        assert!(head.starts_with("HTTP/1.1 200"), "{head}");
        let mut sum = Sha256::new();
        sum.update(&body);
        assert_eq!(hex(sum), Web::sha256(100_000, 5));
        let (head, _) = ask(
            "PUT /up HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 100000\r\n\r\n",
            &body,
        );
        assert!(head.starts_with("HTTP/1.1 204"), "{head}");
        let upload = web.upload(Duration::from_secs(10)).unwrap();
        assert_eq!(
            (upload.path.as_str(), upload.bytes, upload.error),
            ("/up", 100_000, None)
        );
        assert_eq!(upload.sha256, Web::sha256(100_000, 5));
    }
}
