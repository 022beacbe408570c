//! Runs a test in its own name spaces, so that its mounts and networks are private and vanish with its last process,
//! however the test ends. Provides a file system whose power can be cut, and networks that can be cut one way.
//!
//! All of it needs root (CAP_SYS_ADMIN). Without that an `Err` says why, and the test is to be skipped
//! ([`super::skip`]).

use super::programs::compile;
use super::skip::Lack;
use nix::sched::{unshare, CloneFlags};
use rustix::fs::FallocateFlags;
use rustix::thread::{move_into_link_name_space, LinkNameSpaceType};
use std::fs::File;
use std::net::Ipv4Addr;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use tempfile::TempDir;

/// Runs a test in name spaces of mounts and networks that begin as copies and end with the test. The pid name space
/// stays the same, because masters must see each other's pids.
///
/// `prepare` checks that everything the test needs is there; only then `test` runs.
///
/// # Errors
/// Why there are no such name spaces, or what `prepare` lacks: nothing was tested.
///
/// # Panics
/// When the test panics.
pub(crate) fn isolated<T: Send>(
    prepare: impl FnOnce() -> Result<T, Lack> + Send,
    test: impl FnOnce(T) + Send,
) -> Result<(), Lack> {
    if !rustix::process::geteuid().is_root() {
        return Err(Lack::Missing("needs root".into()));
    }
    // A thread enters, not the process, so other tests stay where they are.
    let run = || {
        let spaces = CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET;
        unshare(spaces).map_err(|error| Lack::Refused(format!("unshare of mounts and networks: {error}")))?;
        // Mounts here must not be seen outside, and `ip netns` keeps its names in /run.
        run_tool("mount", &["--make-rprivate", "/"])?;
        run_tool("mount", &["-t", "tmpfs", "dsm-test", "/run"])?;
        run_tool("ip", &["link", "set", "lo", "up"])?;
        prepare().map(test)
    };
    std::thread::scope(|scope| {
        scope.spawn(run).join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Error texts of programs when the kernel, or the container, lacks or forbids what they ask for.
const REFUSALS: [&str; 9] = [
    "Operation not permitted",
    "Permission denied",
    "permission denied",
    "not supported",
    "unknown filesystem type",
    "failed to setup loop device",
    "Unknown device type",
    "Protocol not available",
    "cache initialization failed",
];

/// Runs a program of the system.
///
/// # Errors
/// When it is missing, or the kernel refuses what it asks for.
///
/// # Panics
/// When it fails for another reason, which would be a mistake in the test.
fn run_tool(program: &str, arguments: &[&str]) -> Result<String, Lack> {
    let output = match Command::new(program).args(arguments).stdin(Stdio::null()).output() {
        Ok(output) => output,
        Err(error) => return Err(Lack::Missing(format!("{program}: {error}"))),
    };
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).trim().to_string());
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().replace('\n', "; ");
    let told = format!("{program} {}: {} {said}", arguments.join(" "), output.status);
    assert!(REFUSALS.iter().any(|refusal| said.contains(refusal)), "{told}");
    Err(Lack::Refused(told))
}

/// Shows a file at another path. Only within [`isolated`].
///
/// # Errors
/// What is missing or not allowed.
pub(crate) fn bind_mount(file: &Path, at: &Path) -> Result<(), Lack> {
    run_tool("mount", &["--bind", text(file), text(at)]).map(drop)
}

/// A file system in a file, on which the power can fail.
pub(crate) struct CuttableDisk {
    /// Holds the image, the place where it is mounted and the program that cuts it.
    dir: TempDir,
    shutdown: PathBuf,
}

impl CuttableDisk {
    /// Makes and mounts one. Only within [`isolated`], which removes the mount in the end.
    ///
    /// # Errors
    /// What is missing or not allowed.
    pub(crate) fn new(file_system: &str) -> Result<CuttableDisk, Lack> {
        let dir = TempDir::with_prefix("dsm-disk-").expect("a directory for temporary files");
        let shutdown = compile("file_system_shutdown", dir.path(), &[]);
        let disk = CuttableDisk { dir, shutdown };
        let image = disk.image();
        // The minimum size of xfs. The file is sparse.
        File::create(&image).and_then(|file| file.set_len(320 << 20)).expect("an image");
        std::fs::create_dir(disk.mounted()).expect("a directory");
        run_tool(&format!("mkfs.{file_system}"), &["-q", text(&image)])?;
        disk.mount()?;
        Ok(disk)
    }

    fn image(&self) -> PathBuf {
        self.dir.path().join("image")
    }

    /// Where it is mounted.
    pub(crate) fn mounted(&self) -> PathBuf {
        self.dir.path().join("mounted")
    }

    fn mount(&self) -> Result<(), Lack> {
        run_tool("mount", &["-o", "loop", text(&self.image()), text(&self.mounted())]).map(drop)
    }

    /// Fills the disk with a file; removing the file frees the space.
    pub(crate) fn fill(&self) -> PathBuf {
        let path = self.mounted().join("filler");
        let filler = File::create(&path).expect("the file system works");
        let mut step = 64 << 20;
        let mut taken = 0;
        while step >= 4096 {
            match rustix::fs::fallocate(&filler, FallocateFlags::empty(), taken, step) {
                Ok(()) => taken += step,
                Err(rustix::io::Errno::NOSPC) => step /= 2,
                Err(error) => panic!("filling the disk: {error}"),
            }
        }
        path
    }

    /// Cuts the power: what was not synced is lost, and all further operations of the file system fail.
    pub(crate) fn cut_power(&self) {
        run_tool(text(&self.shutdown), &[text(&self.mounted())])
            .expect("a file system that can be shut down");
    }

    /// Switches the power on again. No process may have a file open.
    pub(crate) fn restore_power(&self) {
        run_tool("umount", &[text(&self.mounted())]).expect("nobody uses it");
        self.mount().expect("it could be mounted before");
    }
}

impl Drop for CuttableDisk {
    fn drop(&mut self) {
        // So that the directory can be removed. If a file is still open, the end of the name space does the rest.
        let _ = Command::new("umount").arg("--lazy").arg(self.mounted()).stderr(Stdio::null()).status();
    }
}

/// Which packets are lost, as the machine in the middle sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cut {
    /// Packets from this address.
    From(Ipv4Addr),
    /// Packets to this address.
    To(Ipv4Addr),
}

/// What a machine in a network of its own is cut off from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Silence {
    /// It hears nobody.
    Deaf,
    /// Nobody hears it.
    Mute,
    /// Both.
    Both,
}

/// The network of the test's own thread, and one for each name, linked with it. Packets can be dropped where they enter
/// and leave the test's own network.
pub(crate) struct Networks {
    names: Vec<String>,
}

impl Networks {
    /// The address of the test's own network.
    pub(crate) const OWN: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);

    /// Makes a network for each name. Only within [`isolated`].
    ///
    /// # Errors
    /// What is missing or not allowed.
    pub(crate) fn new(names: &[&str]) -> Result<Networks, Lack> {
        let networks = Networks { names: names.iter().map(|name| name.to_string()).collect() };
        run_tool("ip", &["link", "add", "name", "bridge0", "type", "bridge"])?;
        run_tool("ip", &["address", "add", &format!("{}/24", Self::OWN), "dev", "bridge0"])?;
        run_tool("ip", &["link", "set", "bridge0", "up"])?;
        for name in names {
            let address = format!("{}/24", networks.address(name));
            run_tool("ip", &["netns", "add", name])?;
            run_tool(
                "ip",
                &["link", "add", "name", name, "type", "veth", "peer", "name", "eth0", "netns", name],
            )?;
            run_tool("ip", &["link", "set", name, "master", "bridge0", "up"])?;
            run_tool("ip", &["-n", name, "address", "add", &address, "dev", "eth0"])?;
            run_tool("ip", &["-n", name, "link", "set", "eth0", "up"])?;
            run_tool("ip", &["-n", name, "link", "set", "lo", "up"])?;
        }
        run_tool("nft", &["add", "table", "ip", "cuts"])?;
        for hook in ["input", "output"] {
            let chain = format!("{{ type filter hook {hook} priority 0; policy accept; }}");
            run_tool("nft", &["add", "chain", "ip", "cuts", hook, &chain])?;
        }
        Ok(networks)
    }

    /// The address in a named network.
    pub(crate) fn address(&self, name: &str) -> Ipv4Addr {
        let number = self.names.iter().position(|known| known == name).expect("a network that was made");
        Ipv4Addr::new(10, 77, 0, u8::try_from(number + 11).expect("few"))
    }

    /// Runs on a thread in a named network. The threads and processes that it starts are in it too.
    pub(crate) fn within<T: Send>(&self, name: &str, run: impl FnOnce() -> T + Send) -> T {
        let path = Path::new("/run/netns").join(name);
        let run = move || {
            let space = File::open(path).expect("a network that was made");
            move_into_link_name_space(space.as_fd(), Some(LinkNameSpaceType::Network)).expect("root may");
            run()
        };
        std::thread::scope(|scope| {
            scope.spawn(run).join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Drops packets from now on.
    pub(crate) fn cut(&self, cut: Cut) {
        let (hook, side, address) = match cut {
            Cut::From(address) => ("input", "saddr", address),
            Cut::To(address) => ("output", "daddr", address),
        };
        let rule = ["add", "rule", "ip", "cuts", hook, "ip", side, &address.to_string(), "drop"];
        run_tool("nft", &rule).expect("it made the table");
    }

    /// A named network hears nobody, or is heard by nobody, until it rejoins.
    pub(crate) fn cut_off(&self, name: &str, silence: Silence) {
        let hooks: &[&str] = match silence {
            Silence::Deaf => &["input"],
            Silence::Mute => &["output"],
            Silence::Both => &["input", "output"],
        };
        self.filter(name, &["add", "table", "ip", "own"]);
        for hook in hooks {
            let chain = format!("{{ type filter hook {hook} priority 0; policy drop; }}");
            self.filter(name, &["add", "chain", "ip", "own", hook, &chain]);
        }
    }

    /// Two named networks do not hear each other any more, until the first one rejoins. All others hear both.
    pub(crate) fn part(&self, name: &str, other: &str) {
        let other = self.address(other).to_string();
        self.filter(name, &["add", "table", "ip", "own"]);
        for (hook, side) in [("input", "saddr"), ("output", "daddr")] {
            let chain = format!("{{ type filter hook {hook} priority 0; policy accept; }}");
            self.filter(name, &["add", "chain", "ip", "own", hook, &chain]);
            self.filter(name, &["add", "rule", "ip", "own", hook, "ip", side, &other, "drop"]);
        }
    }

    /// A named network is cut off from nobody any more.
    pub(crate) fn rejoin(&self, name: &str) {
        self.filter(name, &["delete", "table", "ip", "own"]);
    }

    /// Changes what a named network lets in and out.
    fn filter(&self, name: &str, words: &[&str]) {
        let all: Vec<&str> =
            ["netns", "exec", name, "nft"].into_iter().chain(words.iter().copied()).collect();
        run_tool("ip", &all).expect("the test's own network has a filter, too");
    }

    /// Drops no packets any more.
    pub(crate) fn heal(&self) {
        run_tool("nft", &["flush", "table", "ip", "cuts"]).expect("it made the table");
    }
}

fn text(path: &Path) -> &str {
    path.to_str().expect("temporary directories have plain names")
}
