//! The harness' own cluster: this program in the roles of masters and slaves, or the programs of a build, on free ports,
//! with a directory that is removed at the end.

use super::access::{AccessFiles, StoreAccess};
use super::credentials::RunCredentials;
use super::options::masters_with;
use super::record::LoadSettings;
use anyhow::Context as _;
use dsm::config::TlsFiles;
use dsm::launcher::{Launcher, LauncherConfig, MasterCommand, RoleCommand};
use std::ffi::OsString;
use std::path::Path;
use tempfile::TempDir;

/// The programs of the roles.
pub(crate) const PROGRAMS: [&str; 3] = ["dsm-master", "dsm-backup-master", "dsm-slave"];

/// What statfs says of a file system that lives in memory.
const TMPFS_MAGIC: u64 = 0x0102_1994;

/// The processes and their directory. Dropping it ends and removes both.
#[derive(Debug)]
pub(crate) struct OwnCluster {
    // In this order: the processes first, then what they write to.
    launcher: Launcher,
    access: StoreAccess,
    directory: TempDir,
}

impl OwnCluster {
    /// Prepares a cluster of this program in its roles; nothing runs yet. `parent`: where its directory is made.
    ///
    /// # Errors
    /// When the directory cannot be made, or no port is free.
    pub(crate) fn prepare(
        settings: &LoadSettings,
        master_flags: &[OsString],
        parent: Option<&Path>,
    ) -> anyhow::Result<OwnCluster> {
        let program = std::env::current_exe().context("cannot find this program's own file")?;
        let role = |name: &str| RoleCommand::new(&program).with_prefix(["role", name]);
        OwnCluster::of([role("master"), role("backup"), role("slave")], settings, master_flags, parent)
    }

    /// The same of the programs in the directory `programs`.
    ///
    /// # Errors
    /// When the directory cannot be made, or no port is free.
    pub(crate) fn prepare_programs(
        programs: &Path,
        settings: &LoadSettings,
        parent: Option<&Path>,
    ) -> anyhow::Result<OwnCluster> {
        let roles = PROGRAMS.map(|name| RoleCommand::new(programs.join(name)));
        OwnCluster::of(roles, settings, &[], parent)
    }

    fn of(
        [primary, backup, slave]: [RoleCommand; 3],
        settings: &LoadSettings,
        master_flags: &[OsString],
        parent: Option<&Path>,
    ) -> anyhow::Result<OwnCluster> {
        let mut builder = tempfile::Builder::new();
        builder.prefix("dsm-harness.");
        let directory = match parent {
            Some(parent) => builder.tempdir_in(parent),
            None => builder.tempdir(),
        };
        let directory = directory.context("cannot make the cluster's directory")?;
        let mut flags = masters_with(&settings.fsync, &settings.placement, &[]);
        let made = match settings.tls || settings.secrets {
            true => Some(RunCredentials::make(directory.path())?),
            false => None,
        };
        let certificates = made.as_ref().filter(|_| settings.tls);
        let secrets = made.as_ref().filter(|_| settings.secrets);
        if let Some(made) = secrets {
            flags.extend(["--password-file".into(), made.password.clone().into_os_string()]);
        }
        flags.extend_from_slice(master_flags);
        let masters = [primary, backup].map(|role| MasterCommand::from(role.with_extra(flags.clone())));
        let mut config = LauncherConfig::new(masters, slave, directory.path());
        config.slaves = settings.slaves as usize;
        config.tls = certificates.map(RunCredentials::tls).unwrap_or_default();
        config.secret_file = secrets.map(|made| made.secret.clone());
        config.client_secret_file = secrets.map(|made| made.client_secret.clone());
        let TlsFiles { cert, key, ca } = config.tls.clone();
        let password_file = secrets.map(|made| made.password.clone());
        let access = StoreAccess::read(&AccessFiles { ca, cert, key, password_file })?;
        Ok(OwnCluster { launcher: Launcher::new(config)?, access, directory })
    }

    /// Whether its log would be in memory, so that a sync costs nothing and proves nothing.
    pub(crate) fn is_in_memory(&self) -> bool {
        rustix::fs::statfs(self.directory.path()).is_ok_and(|found| found.f_type as u64 == TMPFS_MAGIC)
    }

    /// How its masters are reached.
    pub(crate) fn access(&self) -> &StoreAccess {
        &self.access
    }

    pub(crate) fn launcher(&mut self) -> &mut Launcher {
        &mut self.launcher
    }

    /// Stops all processes in order and removes the directory.
    ///
    /// # Errors
    /// When the directory cannot be removed.
    pub(crate) fn stop(self) -> anyhow::Result<()> {
        let OwnCluster { mut launcher, directory, .. } = self;
        launcher.stop_all();
        drop(launcher);
        directory.close().context("cannot remove the cluster's directory")
    }
}
