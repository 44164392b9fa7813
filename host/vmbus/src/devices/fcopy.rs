// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! File copy: brings a file of the host into the guest, piece by piece.
//!
//! Reads are done by a thread of each copy, a few pieces ahead, since the worker must not wait for a disk.

use std::fs::File;
use std::io::Read;
use std::sync::mpsc::{sync_channel, Receiver, TryRecvError};

use hvctl::{Command, CopyReply, Sending};
use vmbus_proto::ic::fcopy::{self, CopyFlags, Request, DATA_SIZE, MAX_BODY, VERSIONS};
use vmbus_proto::ic::{MessageType, Status};
use vmbus_proto::packet::Packet;

use super::exchange::{closed, json, later, Exchange};
use super::ic;
use crate::device::{Control, Device, DeviceInfo, DeviceIo, RefTime, Waker};

/// Pieces that are read ahead.
const AHEAD: usize = 8;

/// What the thread brings: pieces until the end, or what went wrong.
type Pieces = Receiver<Result<Vec<u8>, String>>;

/// Where a copy is.
enum Step {
    /// START or a WRITE was sent.
    Writing,
    /// COMPLETE was sent.
    Completing,
    /// CANCEL was sent, since the guest or a read failed.
    Cancelling(Result<Status, String>),
}

/// A copy.
struct Job {
    token: u64,
    pieces: Pieces,
    step: Step,
    /// Bytes that the guest took, and those of the piece on its way.
    taken: u64,
    sent: u64,
    cancel_after: Option<u64>,
    how: Sending,
}

/// The device model.
pub(super) struct Fcopy {
    exchange: Exchange<Job>,
    /// A copy that waits for the thread.
    waiting: Option<Job>,
}

impl Fcopy {
    /// Arguments: those of [`ic::Ic::new`].
    pub(super) fn new(args: &[(String, String)]) -> Result<Self, String> {
        Ok(Self {
            exchange: Exchange::new(
                "fcopy",
                ic::CLASS_FCOPY,
                ic::instance::FCOPY,
                MessageType::FCOPY,
                VERSIONS,
                args,
            )?,
            waiting: None,
        })
    }

    fn send(&mut self, io: &mut DeviceIo<'_>, request: &Request<'_>, mut job: Job) {
        let token = job.token;
        let how = Sending {
            patch: Vec::new(),
            cut: None,
            ..job.how.clone()
        };
        let mut body = Box::new([0; MAX_BODY]);
        job.sent = match request {
            Request::Write { data, .. } => data.len() as u64,
            _ => 0,
        };
        let sent = fcopy::write(request, &mut body)
            .map_err(|e| format!("fcopy: {e}"))
            .and_then(|len| self.exchange.ask(io, &body[..len], &how, job));
        if let Err(e) = sent {
            io.complete(token, Err(e));
        }
    }

    /// Sends the next piece, or the end of the file; waits if there is none yet.
    fn go_on(&mut self, io: &mut DeviceIo<'_>, mut job: Job) {
        if job.cancel_after.is_some_and(|n| job.taken >= n) {
            self.cancel(io, job, Ok(Status::OK));
            return;
        }
        match job.pieces.try_recv() {
            Ok(Ok(data)) => {
                let offset = job.taken;
                self.send(
                    io,
                    &Request::Write {
                        offset,
                        data: &data,
                    },
                    job,
                );
            }
            Ok(Err(e)) => self.cancel(io, job, Err(format!("fcopy: {e}"))),
            Err(TryRecvError::Empty) => self.waiting = Some(job),
            // The thread ends after the last piece.
            Err(TryRecvError::Disconnected) => {
                job.step = Step::Completing;
                self.send(io, &Request::Complete, job);
            }
        }
    }

    fn cancel(&mut self, io: &mut DeviceIo<'_>, mut job: Job, why: Result<Status, String>) {
        job.step = Step::Cancelling(why);
        self.send(io, &Request::Cancel, job);
    }

    fn finish(io: &mut DeviceIo<'_>, job: &Job, result: Result<Status, String>) {
        io.complete(
            job.token,
            result.and_then(|status| {
                json(CopyReply {
                    status: status.get(),
                    bytes: job.taken,
                })
            }),
        );
    }

    fn start(&mut self, io: &mut DeviceIo<'_>, cmd: &Command) -> Result<u64, String> {
        let Command::Copy {
            file,
            directory,
            name,
            overwrite,
            create_path,
            cancel_after,
            how,
        } = cmd
        else {
            return Err("fcopy: not a copy".into());
        };
        if self.waiting.is_some() {
            return Err("fcopy: a copy is under way".into());
        }
        let open = File::open(file).map_err(|e| format!("fcopy: {file}: {e}"))?;
        let size = open
            .metadata()
            .map_err(|e| format!("fcopy: {file}: {e}"))?
            .len();
        let mut flags = CopyFlags::empty();
        flags.set(CopyFlags::OVERWRITE, *overwrite);
        flags.set(CopyFlags::CREATE_PATH, *create_path);
        let mut body = Box::new([0; MAX_BODY]);
        let len = fcopy::write(
            &Request::Start {
                file: name,
                directory,
                flags,
                size,
            },
            &mut body,
        )
        .map_err(|e| format!("fcopy: {e}"))?;
        let token = self.exchange.token();
        let job = Job {
            token,
            pieces: read_ahead(open, io.waker())?,
            step: Step::Writing,
            taken: 0,
            sent: 0,
            cancel_after: *cancel_after,
            how: how.clone(),
        };
        self.exchange.ask(io, &body[..len], how, job)?;
        Ok(token)
    }
}

/// Reads `file` on a thread of its own. The thread ends with the file, with an error, or when nobody listens any more.
fn read_ahead(mut file: File, waker: Waker) -> Result<Pieces, String> {
    let (to, pieces) = sync_channel(AHEAD);
    std::thread::Builder::new()
        .name("hv-fcopy".into())
        .spawn(move || loop {
            let mut data = Vec::with_capacity(DATA_SIZE);
            let read = (&mut file).take(DATA_SIZE as u64).read_to_end(&mut data);
            let last = !matches!(read, Ok(n) if n > 0);
            let piece = match read {
                Ok(0) => None,
                Ok(_) => Some(Ok(data)),
                Err(e) => Some(Err(e.to_string())),
            };
            if piece.is_some_and(|piece| to.send(piece).is_err()) || last {
                drop(to);
                waker.wake();
                return;
            }
            waker.wake();
        })
        .map_err(|e| format!("fcopy: thread: {e}"))?;
    Ok(pieces)
}

impl Device for Fcopy {
    fn info(&self) -> DeviceInfo {
        self.exchange.info()
    }

    fn opened(&mut self, io: &mut DeviceIo<'_>, _index: u16) -> Result<(), String> {
        self.exchange.ic.opened(io);
        Ok(())
    }

    fn closed(&mut self, io: &mut DeviceIo<'_>, _index: u16) {
        let waiting = self.waiting.take();
        for job in self.exchange.closed().chain(waiting) {
            io.complete(job.token, closed("fcopy"));
        }
    }

    fn packet(&mut self, io: &mut DeviceIo<'_>, _index: u16, packet: &Packet<'_>) {
        let Some((mut job, status, _)) = self.exchange.answered(io, packet) else {
            return;
        };
        match std::mem::replace(&mut job.step, Step::Writing) {
            Step::Writing if status.is_ok() => {
                job.taken += job.sent;
                self.go_on(io, job);
            }
            // Nothing was begun that could be cancelled.
            Step::Writing if job.taken == 0 && job.sent == 0 => Self::finish(io, &job, Ok(status)),
            Step::Writing => self.cancel(io, job, Ok(status)),
            Step::Completing => Self::finish(io, &job, Ok(status)),
            Step::Cancelling(why) => Self::finish(io, &job, why),
        }
    }

    fn poll(&mut self, io: &mut DeviceIo<'_>) {
        self.exchange.ic.poll(io);
        if let Some(job) = self.waiting.take() {
            self.go_on(io, job);
        }
    }

    fn deadline(&self) -> Option<RefTime> {
        None
    }

    fn control(&mut self, io: &mut DeviceIo<'_>, cmd: &Command) -> Control {
        let Command::Copy { how, .. } = cmd else {
            return Control::NotMine;
        };
        match self.start(io, cmd) {
            Ok(token) => later(Ok(()), token, how),
            Err(text) => Control::Failed(text),
        }
    }

    fn agreed(&self) -> Option<String> {
        self.exchange.ic.agreed()
    }
}
