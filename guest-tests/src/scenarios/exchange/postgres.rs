// SPDX-License-Identifier: GPL-2.0-only OR MIT

//! A database server in a backup: Debian's PostgreSQL, quiesced by the sample hook, restored from the copy, and verified.

use std::time::Instant;

use anyhow::{bail, ensure, Context, Result};
use hvctl::BackupOp;

use super::backup::copy;
use super::frozen::{all_write, freeze_in, place, until_served, PROMPT};
use super::{backup, config, debian, guest, run_in, status_is, Daemons, Running};
use crate::disks::{Disk, Scratch};
use crate::runner::{Ctx, Scenario, Skip};
use crate::vm::{describe, Vm, SOON};

pub fn scenarios() -> Vec<Scenario> {
    Scenario::both(
        "backup-postgres",
        "PostgreSQL at work: the sample hook makes a checkpoint, all is frozen and copied; a server on the copy has every transaction",
        postgres,
    )
    .map(|scenario| scenario.only_full("the set-up makes PostgreSQL's image for --full alone"))
    .into()
}

/// The system with the server: the Debian image below, its packages above.
const SERVER: &str = "/server";

/// Where the server has its data, and where that of the copy is looked at.
const NAMES: [&str; 2] = ["pg", "restored"];

/// The hook, as it is delivered.
const HOOK: &str = include_str!("../../../../userspace-daemons/hooks/50-postgresql");

/// Lays PostgreSQL over the Debian image, and makes what its packages' scripts would have made.
fn lay_over(vm: &Vm, disk: &str) -> Result<()> {
    debian(vm, "modprobe overlay")?;
    vm.sh(&format!(
        "set -e; mkdir /packages /over {SERVER}; mount -t ext4 -o ro /dev/{disk} /packages; \
         mount -t tmpfs none /over; mkdir /over/upper /over/work; \
         mount -t overlay -o lowerdir=/packages:/debian,upperdir=/over/upper,workdir=/over/work none {SERVER}; \
         for d in proc sys dev run tmp; do mount --rbind /$d {SERVER}/$d; done; chmod 1777 /tmp"
    ))?;
    server(
        vm,
        "set -e; ip link set lo up; echo 'postgres:x:110:' >> /etc/group; \
         echo 'postgres:x:110:110::/var/lib/postgresql:/bin/sh' >> /etc/passwd; \
         mkdir -p /etc/postgresql /var/lib/postgresql /var/log/postgresql /run/postgresql /run/fs/pg /run/fs/restored; \
         chown postgres: /etc/postgresql /var/lib/postgresql /var/log/postgresql /run/postgresql",
    )
    .map(drop)
}

fn server(vm: &Vm, command: &str) -> Result<String> {
    run_in(vm, SERVER, command)
}

/// Puts a program under the server's user.
const USER: &str = "setpriv --reuid postgres --regid postgres --init-groups";

/// Asks the server on this port.
fn sql(vm: &Vm, port: u32, text: &str) -> Result<String> {
    let answer = server(
        vm,
        &format!("{USER} psql --no-psqlrc -p {port} -v ON_ERROR_STOP=1 -Atqc '{text}' bank"),
    )?;
    Ok(answer.trim().to_owned())
}

/// What `pgbench` has booked: each transaction adds the same sum to an account, a teller and a branch, and a row to the history. The
/// number of rows, when all agree.
fn booked(vm: &Vm, port: u32) -> Result<u64> {
    let sums = sql(
        vm,
        port,
        "select (select sum(abalance) from pgbench_accounts), (select sum(tbalance) from pgbench_tellers), \
         (select sum(bbalance) from pgbench_branches), (select coalesce(sum(delta), 0) from pgbench_history), \
         (select count(*) from pgbench_history)",
    )?;
    let numbers: Vec<i64> = sums
        .split('|')
        .map(str::parse)
        .collect::<Result<_, _>>()
        .with_context(|| sums.clone())?;
    match numbers[..] {
        [a, b, c, d, rows] if a == b && b == c && c == d => Ok(u64::try_from(rows)?),
        _ => bail!("sums do not agree: {sums}"),
    }
}

/// Starts a server of its own on the copy, which recovers; what is booked there. Then its files' checksums.
fn restored(vm: &Vm, disk: &str, bin: &str) -> Result<u64> {
    let dir = place(NAMES[1]);
    server(
        vm,
        &format!("set -e; blockdev --flushbufs /dev/{disk}; e2fsck -fn /dev/{disk} >/dev/null; mount -t ext4 /dev/{disk} {dir}"),
    )?;
    // The process that wrote this is not there any more after a restore; here it is.
    let data = format!("{dir}/data");
    server(
        vm,
        &format!(
            "set -e; rm {data}/postmaster.pid; c=$(echo /etc/postgresql/*/main/postgresql.conf); \
             {USER} {bin}/pg_ctl -s -w -t 300 -D {data} -l /var/log/postgresql/restored.log -o \"-p 5433 -c config_file=$c \
               -c data_directory={data} -c external_pid_file=/run/postgresql/restored.pid\" start \
             || {{ cat /var/log/postgresql/restored.log >&2; exit 1; }}"
        ),
    )?;
    let rows = booked(vm, 5433)?;
    server(
        vm,
        &format!(
            "set -e; {USER} {bin}/pg_ctl -s -w -D {data} -m fast stop; {bin}/pg_checksums --check -D {data}; umount {dir}"
        ),
    )?;
    Ok(rows)
}

fn postgres(ctx: &Ctx) -> Result<()> {
    let Some(packages) = &ctx.env.postgres else {
        bail!(Skip("PostgreSQL's image was not made (HV_POSTGRES)".into()));
    };
    let blank = || Scratch::blank(&ctx.env.scratch(), 512 << 20);
    let images = [blank()?, blank()?];
    let config = config(ctx)
        .memory(2048)
        .disk(Disk::file(images[0].path(), 0))
        .disk(Disk::file(images[1].path(), 1))
        .disk(Disk::file(packages, 2).option("ro"));
    guest(ctx, config, |vm| {
        let mut disks = Vec::new();
        for lun in 0..3 {
            disks.push(super::super::storage::block(vm, "scsi0", lun)?);
        }
        lay_over(vm, &disks[2])?;
        let bin = server(vm, "echo /usr/lib/postgresql/*/bin")?;
        let bin = bin.trim();
        let version = server(vm, &format!("{bin}/postgres --version"))?;
        let major = bin.split('/').nth(4).context("no version in the path")?;

        // Debian's tools make the cluster, so that the hook finds it by them.
        let dir = place(NAMES[0]);
        server(
            vm,
            &format!(
                "set -e; mkfs.ext4 -q /dev/{disk}; mount -t ext4 /dev/{disk} {dir}; chown postgres: {dir}; \
                 pg_createcluster --locale C.UTF-8 -d {dir}/data {major} main -- --data-checksums --no-sync >/dev/null; \
                 pg_ctlcluster --skip-systemctl-redirect {major} main start -- -t 300; \
                 {USER} createdb bank; {USER} {bin}/pgbench -i -q bank 2>&1",
                disk = disks[0]
            ),
        )?;
        // Not as fast as it can: the rest has to get on, too.
        let work = Running::start_in(
            vm,
            SERVER,
            &format!("{USER} {bin}/pgbench -n -c 2 -j 1 -R 20 -T 100000 bank"),
        )?;
        vm.write("/run/hook", HOOK)?;
        vm.sh("mkdir /run/hooks && mv /run/hook /run/hooks/50-postgresql && chmod 755 /run/hooks/50-postgresql")?;
        let command = Daemons::Ours.command("vss") + " --hooks /run/hooks --hook-limit 120";
        let daemon = Running::start_in(vm, SERVER, &command)?;
        vm.host().wait_negotiated("vss", SOON)?;
        until_served(vm)?;

        let rounds: u32 = ctx.count(5, 1);
        let (mut last, mut least) = (booked(vm, 5432)?, u64::MAX);
        for round in 0..rounds {
            // It works between two backups.
            let begin = Instant::now();
            let before = loop {
                let now = booked(vm, 5432)?;
                if now > last {
                    break now;
                }
                ensure!(begin.elapsed() < SOON, "pgbench does not get on: {now}");
            };
            let checkpoints = "select num_requested from pg_stat_checkpointer";
            let asked: u64 = sql(vm, 5432, checkpoints)?.parse()?;
            let writers = freeze_in(vm, SERVER, &NAMES[..1])?;
            copy(images[0].path(), images[1].path())?;
            status_is("thaw", backup(vm, BackupOp::Thaw)?.status, 0)?;
            all_write(writers, "thaw", PROMPT)?;
            let after = booked(vm, 5432)?;
            let found = restored(vm, &disks[1], bin)
                .with_context(|| format!("round {round}: the restored server"))?;
            // What had been committed before the freeze is there, and nothing that came later.
            ensure!(
                (before..=after).contains(&found),
                "round {round}: {found} transactions in the copy, {before} before the freeze, {after} after the thaw"
            );
            let now: u64 = sql(vm, 5432, checkpoints)?.parse()?;
            ensure!(now > asked, "round {round}: the hook made no checkpoint");
            least = least.min(found - last);
            last = found;
        }
        let out = work.kill()?;
        ensure!(out.killed, "pgbench had ended: {}", describe(&out));
        let out = daemon.kill()?;
        let made = out
            .stderr
            .text()
            .lines()
            .filter(|line| line.contains("checkpoint made"))
            .count();
        ensure!(
            made == rounds as usize,
            "{made} checkpoints by the hook in {rounds} backups: {}",
            describe(&out)
        );
        server(
            vm,
            &format!("set -e; {USER} {bin}/pg_ctl -s -w -D {dir}/data -m fast stop; umount {dir}"),
        )?;
        ctx.figure(format!(
            "{}: {rounds} restores, {last} transactions, at least {least} between two backups",
            version.trim()
        ));
        Ok(())
    })
}
