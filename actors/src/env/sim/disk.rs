//! The simulated disk: what is in the cache, what is durable, and everything that can go wrong between the two.
//!
//! A write changes the cache. A sync makes durable what was in the cache when it began. A power cut keeps any subset of the
//! sectors that were not synced. After a failed sync all pages count as clean, though only some are on the disk: the next sync
//! succeeds, and when such a page is evicted, readers get what the disk has.
//!
//! A name, too, is durable once its directory is synced. A power cut keeps any of the changes of names that were not synced,
//! each as a whole, but none of a name of which an earlier one is lost: that much a journal gives. A file that has no name
//! any more takes up space until it is closed.

use super::{boot_id, sleep, Machine, Moment, Process, World};
use crate::env::{Appended, Disk, Displaced, File, FileIdentity, Group, OpenMode, Post, Watch};
use futures_util::future::LocalBoxFuture;
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::rc::{Rc, Weak};
use std::time::Duration;
use tokio::sync::{oneshot, Mutex, Notify};

/// The unit that reaches the disk as a whole, in bytes.
const SECTOR_BYTES: usize = 512;

/// How often the pages that a failed sync left clean are evicted, in thousandths. Half of the time that happens some
/// milliseconds later, else before one of the next operations on the file: a takeover has few operations and takes hardly
/// any time.
const EVICTED_PER_MILLE: u64 = 500;
const EVICTED_AFTER_MS: RangeInclusive<u64> = 0..=40;
const EVICTED_AFTER_OPERATIONS: RangeInclusive<u64> = 0..=8;

/// How long the kernel may take to notify of a change.
const NOTICE_MS: RangeInclusive<u64> = 0..=2;

/// How a machine's disk behaves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskSettings {
    /// How long a write takes, in milliseconds.
    pub write_ms: RangeInclusive<u64>,
    /// How long a sync takes, in milliseconds.
    pub sync_ms: RangeInclusive<u64>,
    /// How long a slow sync takes, in milliseconds.
    pub slow_ms: RangeInclusive<u64>,
    /// How often a sync is slow, in thousandths.
    pub slow_per_mille: u64,
    /// How many bytes all files may have together; `None` for no limit.
    pub capacity: Option<u64>,
    /// Whether space can be set aside. On a file system that cannot, a write may find the disk full without warning.
    pub can_reserve: bool,
    /// Whether two files can be exchanged in one step.
    pub can_exchange: bool,
    /// Whether the pages that a failed sync left clean may be evicted. Without `--fsync always` that loses acknowledged
    /// writes, which cannot be prevented.
    pub evicts: bool,
}

impl Default for DiskSettings {
    fn default() -> Self {
        DiskSettings {
            write_ms: 0..=0,
            sync_ms: 0..=1,
            slow_ms: 20..=300,
            slow_per_mille: 2,
            capacity: None,
            can_reserve: true,
            can_exchange: true,
            evicts: true,
        }
    }
}

/// How one operation fails. Writes, syncs and changes of names are counted each by themselves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum DiskFault {
    /// A write fails after some of its bytes: an input/output error.
    WriteFails,
    /// A write finds the disk full after some of its bytes.
    WriteShort,
    /// A write finds the disk full at once.
    WriteFull,
    /// A write takes this many milliseconds.
    WriteStalls(u64),
    /// A sync fails; some of its pages may be lost.
    SyncFails,
    /// A sync takes this many milliseconds.
    SyncStalls(u64),
    /// A file is not created, exchanged or removed: an input/output error.
    NameFails,
}

/// How often operations of a disk have failed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DiskFailures {
    /// Writes that ended with an input/output error.
    pub failed_writes: u64,
    /// Writes that were short, or found the disk full, because of a fault.
    pub short_writes: u64,
    /// Writes that did not fit.
    pub full_writes: u64,
    /// Syncs that failed.
    pub failed_syncs: u64,
    /// Changes of names that failed.
    pub failed_names: u64,
    /// Sectors that were evicted after such a sync: they read as they are on the disk, not as they were written.
    pub evicted_sectors: u64,
}

/// What a power cut does to bytes that were not synced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
    /// All are lost.
    All,
    /// None is lost.
    Nothing,
    /// Each sector is lost or kept by chance, and so is a file's length.
    Torn,
    /// Like `Torn`, and a lost sector may hold garbage.
    Garbled,
}

#[derive(Default)]
pub(super) struct FileSystem {
    settings: RefCell<DiskSettings>,
    /// What the kernel sees.
    files: RefCell<BTreeMap<PathBuf, Rc<Inode>>>,
    /// What a restart of the machine sees.
    durable: RefCell<BTreeMap<PathBuf, Rc<Inode>>>,
    /// The changes of names that are not durable, in their order.
    pending: RefCell<Vec<NameChange>>,
    /// How many changes of names there were, with those of new files.
    changes: Cell<u64>,
    /// Files without a name.
    nameless: RefCell<Vec<Weak<Inode>>>,
    inodes: Cell<u64>,
    handles: Cell<u64>,
    watches: RefCell<Vec<(PathBuf, Weak<Notify>)>>,
    writes: Cell<u64>,
    syncs: Cell<u64>,
    /// How many files were created for another's place, exchanged or removed.
    names: Cell<u64>,
    write_faults: RefCell<BTreeMap<u64, DiskFault>>,
    sync_faults: RefCell<BTreeMap<u64, DiskFault>>,
    name_faults: RefCell<BTreeMap<u64, DiskFault>>,
    failures: Cell<DiskFailures>,
}

/// A change of names that reaches the disk as a whole.
struct NameChange {
    number: u64,
    /// What is at each of the paths from then on.
    entries: Vec<(PathBuf, Option<Rc<Inode>>)>,
}

impl NameChange {
    fn apply(self, names: &mut BTreeMap<PathBuf, Rc<Inode>>) {
        for (path, inode) in self.entries {
            match inode {
                Some(inode) => names.insert(path, inode),
                None => names.remove(&path),
            };
        }
    }
}

/// Sectors on their way to the disk, as they were when a sync began.
struct UnderWay {
    id: u64,
    length: usize,
    sectors: Vec<(usize, Vec<u8>)>,
}

#[derive(Default)]
pub(super) struct Inode {
    number: u64,
    cached: RefCell<Vec<u8>>,
    durable: RefCell<Vec<u8>>,
    /// Sectors that are to be written by the next sync.
    dirty: RefCell<BTreeSet<usize>>,
    under_way: RefCell<Vec<UnderWay>>,
    /// Clean pages that are evicted after so many further operations.
    evictions: RefCell<Vec<(u64, Vec<usize>)>>,
    /// One sync at a time: a sync waits for the pages that an earlier one is writing.
    syncing: Mutex<()>,
    reserved_to: Cell<u64>,
    /// By how many handles it is open.
    handles: Cell<u64>,
    pub(super) lock: RefCell<Option<Lock>>,
    pub(super) unlocked: Notify,
}

/// Who holds a flock.
#[derive(Clone)]
pub(super) struct Lock {
    pub(super) process: Process,
    pub(super) handle: u64,
    /// The published progress, for the lock of a path.
    pub(super) beat: Option<u64>,
}

impl Inode {
    pub(super) fn number(&self) -> u64 {
        self.number
    }

    pub(super) fn bytes(&self) -> Vec<u8> {
        self.cached.borrow().clone()
    }

    /// Writes a whole small file in place.
    pub(super) fn replace(&self, bytes: &[u8]) {
        *self.cached.borrow_mut() = bytes.to_vec();
        self.touch(0, bytes.len());
    }

    fn allocated(&self) -> u64 {
        self.reserved_to.get().max(self.cached.borrow().len() as u64)
    }

    fn touch(&self, from: usize, to: usize) {
        if to > from {
            self.dirty.borrow_mut().extend(from / SECTOR_BYTES..=(to - 1) / SECTOR_BYTES);
        }
    }

    fn sector(bytes: &[u8], sector: usize) -> Vec<u8> {
        let start = (sector * SECTOR_BYTES).min(bytes.len());
        bytes[start..(start + SECTOR_BYTES).min(bytes.len())].to_vec()
    }

    fn take_dirty(&self, id: u64) {
        let cached = self.cached.borrow();
        let sectors = std::mem::take(&mut *self.dirty.borrow_mut());
        let sectors = sectors.into_iter().map(|sector| (sector, Self::sector(&cached, sector))).collect();
        self.under_way.borrow_mut().push(UnderWay { id, length: cached.len(), sectors });
    }

    fn put(durable: &mut Vec<u8>, sector: usize, bytes: &[u8]) {
        let start = sector * SECTOR_BYTES;
        if durable.len() < start + bytes.len() {
            durable.resize(start + bytes.len(), 0);
        }
        durable[start..start + bytes.len()].copy_from_slice(bytes);
    }

    /// A sync has ended. A failed one has brought an unknown part of its sectors to the disk; gives the others, whose
    /// pages count as clean.
    fn arrive(&self, world: &World, id: u64, is_good: bool) -> Vec<usize> {
        let mut under_way = self.under_way.borrow_mut();
        let Some(index) = under_way.iter().position(|sync| sync.id == id) else { return Vec::new() };
        let sync = under_way.remove(index);
        let mut durable = self.durable.borrow_mut();
        let mut missing = Vec::new();
        for (sector, bytes) in &sync.sectors {
            if is_good || world.chance(500) {
                Self::put(&mut durable, *sector, bytes);
            } else {
                missing.push(*sector);
            }
        }
        if is_good {
            // A length grows with the data and shrinks with a cut.
            durable.resize(sync.length, 0);
        }
        missing
    }

    /// Evicts a clean page: from now on readers get what the disk has. The file keeps its length, and what never reached
    /// the disk reads as zeros.
    fn evict(&self, sector: usize) -> bool {
        let is_clean = !self.dirty.borrow().contains(&sector)
            && !self.under_way.borrow().iter().any(|sync| sync.sectors.iter().any(|(at, _)| *at == sector));
        let mut cached = self.cached.borrow_mut();
        let (start, end) = (sector * SECTOR_BYTES, ((sector + 1) * SECTOR_BYTES).min(cached.len()));
        if !is_clean || start >= end {
            return false;
        }
        let durable = self.durable.borrow();
        let mut changed = false;
        for at in start..end {
            let on_disk = durable.get(at).copied().unwrap_or(0);
            changed |= std::mem::replace(&mut cached[at], on_disk) != on_disk;
        }
        changed
    }

    fn lose_power(&self, world: &World, loss: Loss) {
        let id = u64::MAX;
        self.take_dirty(id);
        let syncs = std::mem::take(&mut *self.under_way.borrow_mut());
        let mut durable = self.durable.borrow_mut();
        let length_before = durable.len();
        let length = self.cached.borrow().len();
        let mut reached = length_before;
        // Garbage in a file of which nothing was ever durable looks like a file that is not a log, which a master does
        // not cut. `docs/SEMANTICS.md` says what an operator does then, but a simulated cluster has no operator.
        let may_garble = length_before > 0;
        for (sector, bytes) in syncs.iter().flat_map(|sync| &sync.sectors) {
            let (kept, garbled) = match loss {
                Loss::All => (false, false),
                Loss::Nothing => (true, false),
                Loss::Torn => (world.chance(500), false),
                Loss::Garbled => (world.chance(500), world.chance(200) && may_garble),
            };
            if kept || garbled {
                let mut bytes = bytes.clone();
                if !kept {
                    // Only sectors that were never synced may hold garbage: a sector before the durable end holds
                    // synced bytes, which a disk does not lose.
                    let start = sector * SECTOR_BYTES;
                    for (index, byte) in bytes.iter_mut().enumerate() {
                        *byte = match durable.get(start + index).filter(|_| start + index < length_before) {
                            Some(old) => *old,
                            None => world.random() as u8,
                        };
                    }
                }
                Self::put(&mut durable, *sector, &bytes);
                reached = reached.max(sector * SECTOR_BYTES + bytes.len());
            }
        }
        let end = match loss {
            Loss::All => length_before,
            Loss::Nothing => length,
            Loss::Torn | Loss::Garbled if world.chance(500) => length,
            Loss::Torn | Loss::Garbled => reached.min(length.max(length_before)),
        };
        durable.resize(end, 0);
        self.reserved_to.set(0);
        *self.cached.borrow_mut() = durable.clone();
        self.dirty.borrow_mut().clear();
        self.evictions.borrow_mut().clear();
        *self.lock.borrow_mut() = None;
    }
}

impl FileSystem {
    pub(super) fn change(&self, change: impl FnOnce(&mut DiskSettings)) {
        change(&mut self.settings.borrow_mut());
    }

    pub(super) fn failures(&self) -> DiskFailures {
        self.failures.get()
    }

    fn note_failure(&self, note: impl FnOnce(&mut DiskFailures)) {
        let mut failures = self.failures.get();
        note(&mut failures);
        self.failures.set(failures);
    }

    pub(super) fn fail(&self, nth: u64, fault: DiskFault) {
        let (done, faults) = match fault {
            DiskFault::WriteFails
            | DiskFault::WriteShort
            | DiskFault::WriteFull
            | DiskFault::WriteStalls(_) => (&self.writes, &self.write_faults),
            DiskFault::SyncFails | DiskFault::SyncStalls(_) => (&self.syncs, &self.sync_faults),
            DiskFault::NameFails => (&self.names, &self.name_faults),
        };
        faults.borrow_mut().insert(done.get() + nth, fault);
    }

    pub(super) fn mend(&self) {
        self.write_faults.borrow_mut().clear();
        self.sync_faults.borrow_mut().clear();
        self.name_faults.borrow_mut().clear();
    }

    pub(super) fn operations(&self) -> (u64, u64) {
        (self.writes.get(), self.syncs.get())
    }

    pub(super) fn name_operations(&self) -> u64 {
        self.names.get()
    }

    pub(super) fn content(&self, path: &Path) -> Option<Vec<u8>> {
        self.files.borrow().get(path).map(|inode| inode.cached.borrow().clone())
    }

    pub(super) fn read_durable<T>(&self, path: &Path, read: impl FnOnce(&[u8]) -> T) -> Option<T> {
        self.durable.borrow().get(path).map(|inode| read(&inode.durable.borrow()))
    }

    pub(super) fn edit(&self, path: &Path, edit: impl FnOnce(&mut Vec<u8>)) {
        let inode = self.inode(path);
        edit(&mut inode.cached.borrow_mut());
        *inode.durable.borrow_mut() = inode.cached.borrow().clone();
        self.settle(self.changes.get(), |at| at == path);
    }

    pub(super) fn remove(&self, path: &Path) {
        self.change_names(vec![(path.to_owned(), None)]);
        self.settle(self.changes.get(), |at| at == path);
    }

    /// Renames a file, as `mv` does, over any file with that name. Returns whether there was a file to rename.
    pub(super) fn rename(&self, from: &Path, to: &Path) -> bool {
        let Some(inode) = self.existing(from) else { return false };
        // Both names change in one journal entry.
        self.change_names(vec![(from.to_owned(), None), (to.to_owned(), Some(inode))]);
        self.settle(self.changes.get(), |at| at == from || at == to);
        true
    }

    /// Changes names in the cache. Durable later, each call as a whole.
    fn change_names(&self, entries: Vec<(PathBuf, Option<Rc<Inode>>)>) {
        let number = self.changes.get() + 1;
        self.changes.set(number);
        let mut files = self.files.borrow_mut();
        let before: Vec<_> = entries.iter().filter_map(|(path, _)| files.get(path).cloned()).collect();
        NameChange { number, entries: entries.clone() }.apply(&mut files);
        let mut nameless = self.nameless.borrow_mut();
        nameless.retain(|inode| inode.strong_count() > 0);
        let lost = before.iter().filter(|inode| !files.values().any(|named| Rc::ptr_eq(named, inode)));
        nameless.extend(lost.map(Rc::downgrade));
        self.pending.borrow_mut().push(NameChange { number, entries });
    }

    /// Makes the changes durable, up to the one with the number `last`, of the paths that are wanted. What concerns a path
    /// becomes durable in its order and each change as a whole, so further paths may come along.
    fn settle(&self, last: u64, is_wanted: impl Fn(&Path) -> bool) {
        let mut pending = self.pending.borrow_mut();
        let mut paths = BTreeSet::new();
        let is_due = |change: &NameChange, paths: &BTreeSet<PathBuf>| {
            let mut of = change.entries.iter().map(|(path, _)| path);
            change.number <= last && of.any(|path| is_wanted(path) || paths.contains(path))
        };
        loop {
            let before = paths.len();
            let due: Vec<_> = pending.iter().filter(|change| is_due(change, &paths)).collect();
            let touched = due.into_iter().flat_map(|change| &change.entries).map(|(path, _)| path.clone());
            let touched: Vec<_> = touched.collect();
            paths.extend(touched);
            if paths.len() == before {
                break;
            }
        }
        let (due, later) =
            std::mem::take(&mut *pending).into_iter().partition(|change| is_due(change, &paths));
        *pending = later;
        let due: Vec<NameChange> = due;
        let mut durable = self.durable.borrow_mut();
        due.into_iter().for_each(|change| change.apply(&mut durable));
    }

    /// A new empty file in place of what is at `path`.
    fn create(&self, path: &Path, like: &Path) -> io::Result<Rc<Inode>> {
        self.existing(like).ok_or(io::ErrorKind::NotFound)?;
        if self.existing(path).is_some() {
            self.change_names(vec![(path.to_owned(), None)]);
        }
        Ok(self.inode(path))
    }

    fn exchange(&self, first: &Path, second: &Path) -> io::Result<()> {
        if !self.settings.borrow().can_exchange {
            return Err(io::ErrorKind::Unsupported.into());
        }
        let at_first = self.existing(first).ok_or(io::ErrorKind::NotFound)?;
        let at_second = self.existing(second).ok_or(io::ErrorKind::NotFound)?;
        self.change_names(vec![(first.to_owned(), Some(at_second)), (second.to_owned(), Some(at_first))]);
        Ok(())
    }

    fn remove_that(&self, path: &Path, identity: FileIdentity) -> bool {
        let is_there = self.existing(path).is_some_and(|inode| identity_of(&inode) == identity);
        if is_there {
            self.change_names(vec![(path.to_owned(), None)]);
        }
        is_there
    }

    pub(super) fn existing(&self, path: &Path) -> Option<Rc<Inode>> {
        self.files.borrow().get(path).cloned()
    }

    /// The file at `path`, created when there is none.
    pub(super) fn inode(&self, path: &Path) -> Rc<Inode> {
        if let Some(inode) = self.existing(path) {
            return inode;
        }
        self.inodes.set(self.inodes.get() + 1);
        let inode = Rc::new(Inode { number: self.inodes.get(), ..Inode::default() });
        self.change_names(vec![(path.to_owned(), Some(Rc::clone(&inode)))]);
        inode
    }

    pub(super) fn next_handle(&self) -> u64 {
        self.handles.set(self.handles.get() + 1);
        self.handles.get()
    }

    pub(super) fn allocated(&self) -> u64 {
        let nameless = self.nameless();
        let open = nameless.iter().filter(|inode| inode.handles.get() > 0);
        self.files.borrow().values().chain(open).map(|inode| inode.allocated()).sum()
    }

    fn nameless(&self) -> Vec<Rc<Inode>> {
        self.nameless.borrow().iter().filter_map(Weak::upgrade).collect()
    }

    fn free_bytes(&self) -> u64 {
        let capacity = self.settings.borrow().capacity;
        capacity.map_or(u64::MAX / 4, |capacity| capacity.saturating_sub(self.allocated()))
    }

    /// By how many bytes the file may still grow.
    fn room(&self, inode: &Inode) -> u64 {
        let capacity = self.settings.borrow().capacity;
        capacity
            .map_or(u64::MAX / 2, |capacity| inode.allocated() + capacity.saturating_sub(self.allocated()))
    }

    /// Notifies those who watch the path of a file.
    fn notice(&self, world: &World, inode: &Rc<Inode>) {
        let files = self.files.borrow();
        self.notify(world, |path| files.get(path).is_some_and(|at_path| Rc::ptr_eq(at_path, inode)));
    }

    fn notify(&self, world: &World, is_changed: impl Fn(&Path) -> bool) {
        let mut watches = self.watches.borrow_mut();
        watches.retain(|(_, watch)| watch.strong_count() > 0);
        for (_, watch) in watches.iter().filter(|(path, _)| is_changed(path)) {
            let watch = Weak::clone(watch);
            world.later(Duration::from_millis(world.random_within(NOTICE_MS)), move |_| {
                if let Some(watch) = watch.upgrade() {
                    watch.notify_one();
                }
            });
        }
    }

    /// Releases the locks of a dead process.
    pub(super) fn release(&self, process: &Process) {
        let mut files = self.nameless();
        files.extend(self.files.borrow().values().chain(self.durable.borrow().values()).cloned());
        for inode in files {
            let is_held = inode.lock.borrow().as_ref().is_some_and(|lock| lock.process.is(process));
            if is_held {
                *inode.lock.borrow_mut() = None;
                inode.unlocked.notify_waiters();
            }
        }
    }

    pub(super) fn lose_power(&self, world: &World, loss: Loss) {
        let mut durable = self.durable.borrow_mut();
        let mut lost = BTreeSet::new();
        for change in std::mem::take(&mut *self.pending.borrow_mut()) {
            let mut paths = change.entries.iter().map(|(path, _)| path);
            let is_kept = match loss {
                Loss::All => false,
                Loss::Nothing => true,
                Loss::Torn | Loss::Garbled => world.chance(500) && !paths.any(|path| lost.contains(path)),
            };
            if is_kept {
                change.apply(&mut durable);
            } else {
                lost.extend(change.entries.into_iter().map(|(path, _)| path));
            }
        }
        for inode in durable.values() {
            inode.lose_power(world, loss);
        }
        *self.files.borrow_mut() = durable.clone();
        self.nameless.borrow_mut().clear();
        self.watches.borrow_mut().clear();
    }
}

fn broken() -> io::Error {
    io::Error::other("input/output error, simulated")
}

fn identity_of(inode: &Inode) -> FileIdentity {
    FileIdentity { device: 1, inode: inode.number }
}

/// The disk as one process sees it.
pub(super) struct SimDisk {
    world: World,
    process: Process,
}

impl SimDisk {
    pub(super) fn new(world: &World, process: &Process) -> Self {
        SimDisk { world: world.clone(), process: process.clone() }
    }

    fn files(&self) -> &FileSystem {
        &self.process.0.machine.0.files
    }

    /// Changes names. The kernel finishes what was asked of it even if no caller waits any more.
    async fn change<T: 'static>(
        &self,
        paths: Vec<PathBuf>,
        change: impl FnOnce(&FileSystem) -> io::Result<T> + 'static,
    ) -> io::Result<T> {
        alive(&self.process).await;
        let (answer, answered) = oneshot::channel();
        let (world, process) = (self.world.clone(), self.process.clone());
        let boot = boot_id(&process.0.machine);
        process.0.at_disk.set(process.0.at_disk.get() + 1);
        self.world.spawn(async move {
            let files = &process.0.machine.0.files;
            let range = files.settings.borrow().write_ms.clone();
            sleep(Duration::from_millis(world.random_within(range))).await;
            if boot == boot_id(&process.0.machine) {
                files.names.set(files.names.get() + 1);
                let fault = files.name_faults.borrow_mut().remove(&files.names.get());
                let result = if fault.is_some() {
                    files.note_failure(|failures| failures.failed_names += 1);
                    Err(broken())
                } else {
                    change(files)
                };
                if result.is_ok() {
                    files.notify(&world, |at| paths.iter().any(|path| path == at));
                    world.moment(&process, Moment::NamesChanged);
                }
                // Nobody hears of it whose power was cut meanwhile.
                if boot == boot_id(&process.0.machine) {
                    drop(answer.send(result));
                }
            }
            process.0.at_disk.set(process.0.at_disk.get() - 1);
            process.0.left_disk.notify_one();
        });
        match answered.await {
            Ok(result) => result,
            Err(_) => std::future::pending().await,
        }
    }
}

impl Disk for SimDisk {
    fn open<'a>(&'a self, path: &'a Path, mode: OpenMode) -> LocalBoxFuture<'a, io::Result<Rc<dyn File>>> {
        Box::pin(async move {
            alive(&self.process).await;
            let inode = match mode {
                OpenMode::Read | OpenMode::Existing => {
                    self.files().existing(path).ok_or(io::ErrorKind::NotFound)?
                }
                OpenMode::Write => self.files().inode(path),
            };
            self.world.moment(&self.process, Moment::Opened);
            let file: Rc<dyn File> = Rc::new(SimFile::new(&self.world, &self.process, inode));
            Ok(file)
        })
    }

    fn identity<'a>(&'a self, path: &'a Path) -> LocalBoxFuture<'a, io::Result<Option<FileIdentity>>> {
        Box::pin(async move { Ok(self.files().existing(path).map(|inode| identity_of(&inode))) })
    }

    fn resolve<'a>(&'a self, path: &'a Path) -> LocalBoxFuture<'a, io::Result<PathBuf>> {
        Box::pin(async move {
            alive(&self.process).await;
            self.files().existing(path).ok_or(io::ErrorKind::NotFound)?;
            Ok(path.to_owned())
        })
    }

    fn create<'a>(&'a self, path: &'a Path, like: &'a Path) -> LocalBoxFuture<'a, io::Result<Rc<dyn File>>> {
        let (at, like) = (path.to_owned(), like.to_owned());
        Box::pin(async move {
            let inode = self.change(vec![path.to_owned()], move |files| files.create(&at, &like)).await?;
            let file: Rc<dyn File> = Rc::new(SimFile::new(&self.world, &self.process, inode));
            Ok(file)
        })
    }

    fn exchange<'a>(&'a self, first: &'a Path, second: &'a Path) -> LocalBoxFuture<'a, io::Result<()>> {
        let (first, second) = (first.to_owned(), second.to_owned());
        let paths = vec![first.clone(), second.clone()];
        Box::pin(self.change(paths, move |files| files.exchange(&first, &second)))
    }

    fn remove<'a>(&'a self, path: &'a Path, identity: FileIdentity) -> LocalBoxFuture<'a, io::Result<bool>> {
        let at = path.to_owned();
        Box::pin(self.change(vec![path.to_owned()], move |files| Ok(files.remove_that(&at, identity))))
    }

    fn free_bytes<'a>(&'a self, _: &'a Path) -> LocalBoxFuture<'a, io::Result<u64>> {
        Box::pin(async move {
            alive(&self.process).await;
            Ok(self.files().free_bytes())
        })
    }

    fn sync_directory<'a>(&'a self, path: &'a Path) -> LocalBoxFuture<'a, io::Result<()>> {
        Box::pin(async move {
            alive(&self.process).await;
            let last = self.files().changes.get();
            let range = self.files().settings.borrow().sync_ms.clone();
            sleep(Duration::from_millis(self.world.random_within(range))).await;
            alive(&self.process).await;
            self.files().settle(last, |at| at.parent() == path.parent());
            self.world.moment(&self.process, Moment::DirectorySynced);
            Ok(())
        })
    }

    fn watch<'a>(&'a self, path: &'a Path) -> LocalBoxFuture<'a, io::Result<Box<dyn Watch>>> {
        Box::pin(async move {
            let changed = Rc::new(Notify::new());
            self.files().watches.borrow_mut().push((path.to_owned(), Rc::downgrade(&changed)));
            let watch: Box<dyn Watch> = Box::new(SimWatch { changed });
            Ok(watch)
        })
    }
}

/// Waits for ever in a process that has ended.
async fn alive(process: &Process) {
    if !process.is_alive() {
        std::future::pending::<()>().await;
    }
}

struct SimWatch {
    changed: Rc<Notify>,
}

impl Watch for SimWatch {
    fn changed(&mut self) -> LocalBoxFuture<'_, io::Result<()>> {
        Box::pin(async move {
            self.changed.notified().await;
            Ok(())
        })
    }
}

struct Opened {
    world: World,
    process: Process,
    machine: Machine,
    inode: Rc<Inode>,
    handle: u64,
    /// One operation at a time, in the order of the calls.
    turn: Mutex<()>,
}

/// An open file. The kernel finishes what was asked of it even if no caller waits any more.
struct SimFile(Rc<Opened>);

impl SimFile {
    fn new(world: &World, process: &Process, inode: Rc<Inode>) -> Self {
        inode.handles.set(inode.handles.get() + 1);
        let machine = process.0.machine.clone();
        let handle = machine.0.files.next_handle();
        let (world, process, turn) = (world.clone(), process.clone(), Mutex::new(()));
        SimFile(Rc::new(Opened { world, process, machine, inode, handle, turn }))
    }

    async fn run<T: 'static, F>(&self, work: impl FnOnce(Rc<Opened>) -> F) -> T
    where
        F: std::future::Future<Output = T> + 'static,
    {
        let (answer, answered) = oneshot::channel();
        let opened = Rc::clone(&self.0);
        alive(&opened.process).await;
        let (world, boot) = (opened.world.clone(), boot_id(&opened.machine));
        let work = work(Rc::clone(&opened));
        // The place in the queue is taken in the order of the calls.
        world.spawn(async move {
            let turn = opened.turn.lock().await;
            // Operations that a process had queued end with it; those that the kernel had begun do not.
            if opened.process.is_alive() && boot == boot_id(&opened.machine) {
                let process = &opened.process.0;
                process.at_disk.set(process.at_disk.get() + 1);
                opened.evict_due();
                let result = work.await;
                process.at_disk.set(process.at_disk.get() - 1);
                process.left_disk.notify_one();
                drop(answer.send(result));
            }
            drop(turn);
        });
        match answered.await {
            Ok(result) => result,
            Err(_) => std::future::pending().await,
        }
    }
}

impl Drop for Opened {
    fn drop(&mut self) {
        self.inode.handles.set(self.inode.handles.get() - 1);
    }
}

impl Opened {
    fn files(&self) -> &FileSystem {
        &self.machine.0.files
    }

    /// Whether the machine still runs as it did when the operation began.
    fn same_boot(&self, boot: &str) -> bool {
        boot_id(&self.machine) == boot
    }

    /// Evicts the pages that are due with the operation that begins now.
    fn evict_due(&self) {
        let mut due = Vec::new();
        self.inode.evictions.borrow_mut().retain_mut(|(left, sectors)| {
            let is_due = *left == 0;
            if is_due {
                due.append(sectors);
            } else {
                *left -= 1;
            }
            !is_due
        });
        let lost = due.into_iter().filter(|sector| self.inode.evict(*sector)).count() as u64;
        self.files().note_failure(|failures| failures.evicted_sectors += lost);
    }

    #[expect(clippy::too_many_lines, reason = "the moments of one append in their order")]
    async fn append(self: Rc<Self>, group: Group) -> Appended {
        let files = self.files();
        let Group { offset, bytes, sync, reserve_to, post } = group;
        if let Some(displaced) = self.displaced(post.as_ref(), offset) {
            return Appended { displaced: Some(displaced), ..Appended::nothing(bytes) };
        }
        self.world.moment(&self.process, Moment::WriteBegan);
        let boot = boot_id(&self.machine);
        files.writes.set(files.writes.get() + 1);
        let fault = files.write_faults.borrow_mut().remove(&files.writes.get());
        let range = files.settings.borrow().write_ms.clone();
        let mut delay = Duration::from_millis(self.world.random_within(range));
        if let Some(DiskFault::WriteStalls(ms)) = fault {
            delay += Duration::from_millis(ms);
        }
        sleep(delay).await;
        if !self.same_boot(&boot) {
            return std::future::pending().await;
        }
        let full = |bytes| Appended {
            write_error: Some(io::ErrorKind::StorageFull.into()),
            ..Appended::nothing(bytes)
        };
        let room = files.room(&self.inode);
        let reserve_to = reserve_to.filter(|_| files.settings.borrow().can_reserve);
        if fault == Some(DiskFault::WriteFull) {
            files.note_failure(|failures| failures.short_writes += 1);
            return full(bytes);
        }
        if reserve_to.is_some_and(|end| end > room) {
            files.note_failure(|failures| failures.full_writes += 1);
            return full(bytes);
        }
        if let Some(end) = reserve_to {
            self.inode.reserved_to.set(self.inode.reserved_to.get().max(end));
        }
        let mut written = bytes.len().min(room.saturating_sub(offset) as usize);
        if matches!(fault, Some(DiskFault::WriteFails | DiskFault::WriteShort)) && !bytes.is_empty() {
            written = self.world.random_within(0..=bytes.len() as u64 - 1) as usize;
        }
        let (start, end) = (offset as usize, offset as usize + written);
        {
            let mut cached = self.inode.cached.borrow_mut();
            if cached.len() < end {
                let old = cached.len();
                cached.resize(end, 0);
                self.inode.touch(old.min(start), end);
            }
            cached[start..end].copy_from_slice(&bytes[..written]);
            self.inode.touch(start, end);
        }
        self.world.fold((written as u64) << 8 | 4);
        self.world.moment(&self.process, Moment::Written);
        files.notice(&self.world, &self.inode);
        if !self.same_boot(&boot) {
            return std::future::pending().await;
        }
        let write_error = if fault == Some(DiskFault::WriteFails) {
            files.note_failure(|failures| failures.failed_writes += 1);
            Some(broken())
        } else if written < bytes.len() {
            files.note_failure(|failures| match fault {
                Some(DiskFault::WriteShort) => failures.short_writes += 1,
                _ => failures.full_writes += 1,
            });
            Some(io::ErrorKind::StorageFull.into())
        } else {
            None
        };
        let sync_error = if sync && written > 0 { self.sync().await.err() } else { None };
        let displaced = self.displaced(post.as_ref(), offset + written as u64);
        Appended { bytes, written, write_error, sync_error, displaced, unseen: None, sync_us: None }
    }

    fn displaced(&self, post: Option<&Post>, length: u64) -> Option<Displaced> {
        let post = post?;
        let found = self.files().existing(&post.path);
        let found = found.map(|inode| (identity_of(&inode), inode.cached.borrow().len() as u64));
        let is_deleted = !self.files().files.borrow().values().any(|inode| Rc::ptr_eq(inode, &self.inode));
        post.judge(found, length).map(|stands| Displaced { stands, is_deleted })
    }

    async fn sync(&self) -> io::Result<()> {
        let files = self.files();
        let boot = boot_id(&self.machine);
        self.world.moment(&self.process, Moment::SyncBegan);
        let turn = self.inode.syncing.lock().await;
        if !self.same_boot(&boot) {
            drop(turn);
            return std::future::pending().await;
        }
        files.syncs.set(files.syncs.get() + 1);
        let id = files.syncs.get();
        let fault = files.sync_faults.borrow_mut().remove(&id);
        self.inode.take_dirty(id);
        let settings = files.settings.borrow().clone();
        let range =
            if self.world.chance(settings.slow_per_mille) { settings.slow_ms } else { settings.sync_ms };
        let mut delay = Duration::from_millis(self.world.random_within(range));
        if let Some(DiskFault::SyncStalls(ms)) = fault {
            delay += Duration::from_millis(ms);
        }
        sleep(delay).await;
        if !self.same_boot(&boot) {
            drop(turn);
            return std::future::pending().await;
        }
        let is_good = fault != Some(DiskFault::SyncFails);
        let missing = self.inode.arrive(&self.world, id, is_good);
        let evicts = files.settings.borrow().evicts;
        if !evicts || missing.is_empty() || !self.world.chance(EVICTED_PER_MILLE) {
            // They stay as they are.
        } else if self.world.chance(500) {
            let operations = self.world.random_within(EVICTED_AFTER_OPERATIONS);
            self.inode.evictions.borrow_mut().push((operations, missing));
        } else {
            let delay = Duration::from_millis(self.world.random_within(EVICTED_AFTER_MS));
            let (machine, inode) = (self.machine.clone(), Rc::clone(&self.inode));
            let at_boot = boot.clone();
            self.world.later(delay, move |_| {
                if boot_id(&machine) == at_boot {
                    let lost = missing.iter().filter(|sector| inode.evict(**sector)).count() as u64;
                    machine.0.files.note_failure(|failures| failures.evicted_sectors += lost);
                }
            });
        }
        self.world.fold(u64::from(is_good) << 8 | 5);
        if !is_good {
            files.note_failure(|failures| failures.failed_syncs += 1);
            return Err(broken());
        }
        self.world.moment(&self.process, Moment::Synced);
        if !self.same_boot(&boot) {
            drop(turn);
            return std::future::pending().await;
        }
        Ok(())
    }
}

impl File for SimFile {
    fn read_at(&self, offset: u64, length: usize) -> LocalBoxFuture<'_, io::Result<Vec<u8>>> {
        Box::pin(self.run(move |opened| async move {
            let cached = opened.inode.cached.borrow();
            let start = usize::try_from(offset).map_or(cached.len(), |start| start.min(cached.len()));
            Ok(cached[start..cached.len().min(start.saturating_add(length))].to_vec())
        }))
    }

    fn append(&self, group: Group) -> LocalBoxFuture<'_, Appended> {
        Box::pin(self.run(move |opened| opened.append(group)))
    }

    fn look(&self, post: Post, length: u64) -> LocalBoxFuture<'_, io::Result<Option<Displaced>>> {
        Box::pin(self.run(move |opened| async move { Ok(opened.displaced(Some(&post), length)) }))
    }

    fn sync(&self) -> LocalBoxFuture<'_, io::Result<()>> {
        Box::pin(self.run(move |opened| async move { opened.sync().await }))
    }

    fn truncate(&self, length: u64) -> LocalBoxFuture<'_, io::Result<()>> {
        Box::pin(self.run(move |opened| async move {
            let length = length as usize;
            opened.inode.cached.borrow_mut().resize(length, 0);
            opened.inode.reserved_to.set(0);
            // The sector in which the cut lies changes on the disk too.
            opened.inode.dirty.borrow_mut().retain(|sector| sector * SECTOR_BYTES < length);
            opened.world.fold((length as u64) << 8 | 6);
            opened.world.moment(&opened.process, Moment::Truncated);
            opened.files().notice(&opened.world, &opened.inode);
            Ok(())
        }))
    }

    fn length(&self) -> LocalBoxFuture<'_, io::Result<u64>> {
        Box::pin(async move { Ok(self.0.inode.cached.borrow().len() as u64) })
    }

    fn identity(&self) -> LocalBoxFuture<'_, io::Result<FileIdentity>> {
        Box::pin(async move { Ok(identity_of(&self.0.inode)) })
    }

    fn duplicate(&self) -> LocalBoxFuture<'_, io::Result<Rc<dyn File>>> {
        Box::pin(async move {
            let opened = &self.0;
            let inode = Rc::clone(&opened.inode);
            let file: Rc<dyn File> = Rc::new(SimFile::new(&opened.world, &opened.process, inode));
            Ok(file)
        })
    }

    fn try_lock(&self) -> io::Result<bool> {
        if !self.0.process.is_alive() {
            return Ok(false);
        }
        let mut lock = self.0.inode.lock.borrow_mut();
        match &*lock {
            Some(held) => Ok(held.handle == self.0.handle),
            None => {
                *lock = Some(Lock { process: self.0.process.clone(), handle: self.0.handle, beat: None });
                Ok(true)
            }
        }
    }

    fn unlock(&self) -> io::Result<()> {
        unlock(&self.0.process, &self.0.inode, self.0.handle);
        Ok(())
    }
}

impl Drop for SimFile {
    fn drop(&mut self) {
        unlock(&self.0.process, &self.0.inode, self.0.handle);
    }
}

/// Releases a lock, if that handle of a live process has it.
pub(super) fn unlock(process: &Process, inode: &Inode, handle: u64) {
    let is_ours = inode.lock.borrow().as_ref().is_some_and(|lock| lock.handle == handle);
    if process.is_alive() && is_ours {
        *inode.lock.borrow_mut() = None;
        inode.unlocked.notify_waiters();
    }
}
