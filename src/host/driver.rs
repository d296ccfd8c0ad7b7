//! The background lane: one thread per process that renews the leases of all managers, without the interpreter.
//!
//! It is there only while there is a lease to renew or to give back, and has sessions of its own. It drives the same
//! engine as the callers' threads do, and never waits for one of them.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError, Weak};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use nix::sys::signal::{SigSet, SigmaskHow};
use rustix::thread::gettid;

use crate::clock::{BootClock, Clock, Instant};
use crate::engine::Session;
use crate::engine::owed;
use crate::engine::renew::{SharedLease, Waits, keep, release_lease};
use crate::host::per_process::PerProcess;
use crate::host::pool::{InProcess, Pool};
use crate::host::{System, blocking};
use crate::lease::{Reason, Step};
use crate::runtime::{Alarm, locked};

/// The longest wait: the clock may jump meanwhile, and new leases that are due later are taken up then. The tests have to
/// see that everything else ends the wait itself.
const LONGEST_WAIT: Duration = if cfg!(test) { Duration::from_secs(3600) } else { Duration::from_millis(500) };

/// At the end of a process: all leases are released within so many times what one answer may take, or are left behind.
const LONGEST_END: u32 = 10;

/// A wait that ends so late was not the masters' doing: the process was stopped, or had no processor.
const LATE: Duration = Duration::from_millis(20);

/// A session that has nothing to do is kept for so long: the next lease finds its connections.
const LINGER: Duration = Duration::from_secs(5);

/// How long a thread that has ended may still be listed, at most.
const LONGEST_LISTED: Duration = Duration::from_millis(10);

/// What the engine needs is on the heap; a TLS handshake takes most of this.
const STACK_SIZE: usize = 512 * 1024;

/// Renew a lease from now on, until it ends.
///
/// # Errors
///
/// The thread cannot be started.
pub fn renew(pool: &Pool, lease: Arc<SharedLease>) -> io::Result<()> {
    let now = BootClock.now();
    let due = match lease.with(|state| state.next(now)) {
        Step::Wait(at) | Step::GiveBackAt(at) => at,
        Step::Renew(_) | Step::Lose(_) => now,
        Step::Over => return Ok(()),
    };
    let process = current();
    lease.on_hurry(|| current().hurry());
    process.post(Job { home: Arc::clone(pool.here()), task: Task::Keep(lease) }, due)
}

/// See to what the masters are owed by what was done in this process.
///
/// # Errors
///
/// The thread cannot be started.
pub(super) fn settle(home: Arc<InProcess>) -> io::Result<()> {
    current().post(Job { home, task: Task::Settle }, Instant::default())
}

/// Release a lease, although no caller waits for it.
///
/// # Errors
///
/// The thread cannot be started.
pub fn release_later(pool: &Pool, lease: Arc<SharedLease>) -> io::Result<()> {
    current().post(Job { home: Arc::clone(pool.here()), task: Task::Release(lease) }, Instant::default())
}

/// The process is about to end: release all leases that are renewed, and wait for that as long as it goes on: no longer
/// than `patience` for the next answer, and no longer than ten times that in all.
pub fn finish(patience: Duration) {
    current().finish(patience);
}

/// The process is about to fork: the thread ends, so that the child finds no mutex locked, and the interpreter has no other
/// thread to warn of. What it has in hand stays as it is until [`resume`].
pub fn pause() {
    current().pause();
}

/// The process has forked: the thread goes on.
///
/// # Errors
///
/// The thread cannot be started. The next job tries again.
pub fn resume() -> io::Result<()> {
    current().resume()
}

/// The driver of this process.
fn current() -> &'static Arc<Process> {
    static DRIVERS: PerProcess<Arc<Process>> = PerProcess::new();
    DRIVERS.here()
}

/// What the driver of one process has in common with those who give it work.
#[derive(Default)]
struct Process {
    mail: Mutex<Mail>,
    /// The thread has ended, or has one task more or less.
    progress: Condvar,
    is_asleep: AtomicBool,
    thread: Mutex<Option<JoinHandle<()>>>,
    /// What the system calls it.
    thread_id: AtomicI32,
    /// What the thread has in hand while it is not there.
    paused: Mutex<Option<Lanes>>,
    /// How many threads are about to fork. The first waits until this one has ended, and the others for that.
    forks: Mutex<usize>,
}

#[derive(Default)]
struct Mail {
    jobs: Vec<Job>,
    /// The thread is to end, and to leave what it has in hand.
    pauses: bool,
    /// What ends the wait of the thread, if there is one and it waits.
    alarm: Option<Alarm>,
    /// When it looks for jobs again.
    wakes_at: Instant,
    finish: Finish,
    /// How many tasks there are, while the process is about to end.
    at_work: usize,
}

impl Mail {
    fn wake(&self) {
        self.alarm.as_ref().inspect(|alarm| alarm());
    }
}

/// Whether the process is about to end.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Finish {
    #[default]
    No,
    /// All leases are to be released.
    Asked,
    /// They are being released.
    Begun,
}

struct Job {
    home: Arc<InProcess>,
    task: Task,
}

enum Task {
    Keep(Arc<SharedLease>),
    Release(Arc<SharedLease>),
    Settle,
}

impl Process {
    /// Have a job done, which is due then. The thread is not woken for what it will find in time.
    fn post(self: &Arc<Self>, job: Job, due: Instant) -> io::Result<()> {
        let mut mail = locked(&self.mail);
        if mail.alarm.is_none() {
            mail.alarm = Some(self.start()?);
        }
        mail.jobs.push(job);
        if due < mail.wakes_at {
            mail.wakes_at = due;
            mail.wake();
        }
        Ok(())
    }

    /// Look for jobs now: one is due earlier than it was.
    fn hurry(&self) {
        let mut mail = locked(&self.mail);
        mail.wakes_at = Instant::default();
        mail.wake();
    }

    /// Start the thread; what ends its wait. All signals are for the interpreter's threads, which wait for them.
    fn start(self: &Arc<Self>) -> io::Result<Alarm> {
        let mut ear = Session::new(&[], Arc::default(), Arc::default(), Arc::new(System::default()));
        let (bell, process) = (ear.handle().effects().alarm(ear.handle())?, Arc::clone(self));
        ear.turn(); // or the first wait would not hear the bell
        let alarm: Alarm = Arc::new(move || {
            if process.is_asleep.swap(false, Ordering::SeqCst) {
                bell();
            }
        });
        self.drive(Lanes { process: Arc::clone(self), alarm: Arc::clone(&alarm), ear, list: Vec::new() })?;
        Ok(alarm)
    }

    fn drive(&self, lanes: Lanes) -> io::Result<()> {
        let before = SigSet::all().thread_swap_mask(SigmaskHow::SIG_SETMASK)?;
        let builder = thread::Builder::new().name("redlock-driver".into()).stack_size(STACK_SIZE);
        let started = builder.spawn(move || lanes.run());
        before.thread_set_mask()?;
        *locked(&self.thread) = Some(started?);
        Ok(())
    }

    fn pause(&self) {
        let mut forks = locked(&self.forks);
        *forks += 1;
        let Some(thread) = locked(&self.thread).take() else { return };
        let mut mail = locked(&self.mail);
        mail.pauses = true;
        mail.wake();
        drop(mail);
        // Also one that is about to end by itself.
        _ = thread.join();
        // Linux lists a thread for a moment longer, and that is where the interpreter counts them.
        let listed = format!("/proc/self/task/{}", self.thread_id.load(Ordering::Relaxed));
        let end = BootClock.now().after(LONGEST_LISTED);
        while Path::new(&listed).exists() && BootClock.now() < end {
            thread::yield_now();
        }
        drop(forks);
    }

    fn resume(&self) -> io::Result<()> {
        let mut forks = locked(&self.forks);
        *forks = forks.saturating_sub(1); // a child has paused nothing
        if *forks > 0 {
            return Ok(());
        }
        locked(&self.mail).pauses = false;
        let paused = locked(&self.paused).take();
        let resumed = paused.map_or(Ok(()), |lanes| self.drive(lanes));
        if resumed.is_err() {
            locked(&self.mail).alarm = None;
        }
        resumed
    }

    fn finish(&self, patience: Duration) {
        let mut mail = locked(&self.mail);
        if mail.alarm.is_none() {
            return;
        }
        mail.finish = Finish::Asked;
        mail.wake();
        let end = BootClock.now().after(patience * LONGEST_END);
        let mut goes_on = true;
        while goes_on {
            let before = mail.at_work;
            let waits = |mail: &mut Mail| mail.alarm.is_some() && mail.at_work == before;
            let waited = self.progress.wait_timeout_while(mail, patience, waits);
            let (after, timeout) = waited.unwrap_or_else(PoisonError::into_inner);
            goes_on = after.alarm.is_some() && !timeout.timed_out() && BootClock.now() < end;
            mail = after;
        }
        mail.finish = Finish::No;
    }

    /// Whether the thread may wait until `deadline`: there is nothing to do before.
    fn may_sleep(&self, deadline: Instant) -> bool {
        let mut mail = locked(&self.mail);
        mail.wakes_at = deadline;
        mail.jobs.is_empty() && mail.finish != Finish::Asked && !mail.pauses
    }
}

/// The sessions that the thread drives.
struct Lanes {
    process: Arc<Process>,
    alarm: Alarm,
    ear: Session,
    list: Vec<Lane>,
}

/// One session, and the leases that are renewed or released on it.
struct Lane {
    home: Arc<InProcess>,
    session: Session,
    leases: Vec<Weak<SharedLease>>,
    /// Each task on the session that has to do with a lease has a clone, and that which settles what is owed.
    at_work: Arc<()>,
    settles: Arc<()>,
    /// It is of the manager's pool, and goes back there.
    is_lent: bool,
    /// How long it stays when it has nothing to do. Leases come in series; a debt is no reason for a thread to stay, which
    /// a process that forks would be warned of.
    lingers: Duration,
    idle_since: Option<Instant>,
    has_told_news: bool,
}

impl Lanes {
    /// The thread. If it panics, all leases are lost, and it goes on with the next ones.
    fn run(mut self) {
        self.process.thread_id.store(gettid().as_raw_nonzero().get(), Ordering::Relaxed);
        let is_paused = loop {
            if let Ok(is_paused) = catch_unwind(AssertUnwindSafe(|| self.attend())) {
                break is_paused;
            }
            for lane in std::mem::take(&mut self.list) {
                lane.leases.iter().filter_map(Weak::upgrade).for_each(|lease| lease.lose(Reason::Unavailable));
            }
        };
        if is_paused {
            let process = Arc::clone(&self.process);
            *locked(&process.paused) = Some(self);
        }
    }

    /// Work until there is nothing left to do, or, as is returned, the process is about to fork.
    fn attend(&mut self) -> bool {
        loop {
            self.take_up();
            self.list.iter_mut().for_each(Lane::turn);
            self.sweep();
            if self.is_over() {
                return false;
            }
            if locked(&self.process.mail).pauses {
                return true;
            }
            self.wait();
        }
    }

    /// Whether there is nothing to do any more: then the thread ends, and the next job starts another.
    fn is_over(&self) -> bool {
        let mut mail = locked(&self.process.mail);
        let is_over = self.list.is_empty() && mail.jobs.is_empty();
        if is_over {
            mail.alarm = None;
            drop(mail);
            self.process.progress.notify_all();
        }
        is_over
    }

    fn take_up(&mut self) {
        let mut mail = locked(&self.process.mail);
        let (jobs, is_asked) = (std::mem::take(&mut mail.jobs), mail.finish == Finish::Asked);
        if is_asked {
            mail.finish = Finish::Begun;
        }
        drop(mail);
        for job in jobs {
            self.begin(job);
        }
        if is_asked {
            for job in self.list.iter_mut().flat_map(Lane::finish).collect::<Vec<_>>() {
                self.begin(job);
            }
        }
    }

    fn begin(&mut self, Job { home, task }: Job) {
        let owing = match &task {
            Task::Keep(lease) if lease.is_over() => return,
            Task::Release(lease) => home.lend_owing(&lease.claim().key),
            Task::Keep(_) | Task::Settle => None,
        };
        let is_lent = owing.is_some();
        let known = self.list.iter_mut().find(|lane| !is_lent && !lane.is_lent && Arc::ptr_eq(&lane.home, &home));
        if let Some(lane) = known {
            return lane.begin(task);
        }
        let session = owing.unwrap_or_else(|| home.new_session());
        let mut lane = Lane::new(home, session, is_lent);
        lane.session.handle().let_others_wake(Some(Arc::clone(&self.alarm)));
        lane.begin(task);
        self.list.push(lane);
    }

    /// Give sessions back, and close those that have had nothing to do for long.
    fn sweep(&mut self) {
        let now = BootClock.now();
        let is_finishing = locked(&self.process.mail).finish != Finish::No;
        for mut lane in std::mem::take(&mut self.list) {
            if lane.goes_on(now, is_finishing) {
                self.list.push(lane);
            } else if lane.is_lent {
                lane.home.take_back(lane.session);
            }
        }
        if is_finishing {
            locked(&self.process.mail).at_work = self.list.iter().map(Lane::at_work).sum();
            self.process.progress.notify_all();
        }
    }

    /// Wait until something can go on. What wakes a task in another thread rings the bell only from here on.
    fn wait(&mut self) {
        self.process.is_asleep.store(true, Ordering::SeqCst);
        let mut all = self.ear.wait();
        let now = BootClock.now();
        let mut deadline = now.after(LONGEST_WAIT);
        for lane in &self.list {
            let wait = lane.session.wait();
            all.sources.extend(wait.sources);
            deadline = deadline.min(wait.deadline.unwrap_or(deadline)).min(lane.closes_at());
        }
        let may_sleep = self.process.may_sleep(deadline);
        let timeout = if may_sleep { deadline.since(now) } else { Duration::ZERO };
        let woke = || self.process.is_asleep.store(false, Ordering::SeqCst);
        // If it fails, the descriptors are looked at again in the next turn.
        _ = blocking::poll_then(&all.sources, timeout, woke);
        let late = BootClock.now().since(now.after(timeout));
        if late > LATE {
            self.list.iter().for_each(|lane| lane.session.was_left_alone(late));
        }
        self.ear.turn();
    }
}

impl Lane {
    fn new(home: Arc<InProcess>, session: Session, is_lent: bool) -> Self {
        let (leases, at_work, settles) = Default::default();
        let (lingers, idle_since) = (Duration::ZERO, None);
        Self { home, session, leases, at_work, settles, is_lent, lingers, idle_since, has_told_news: false }
    }

    fn begin(&mut self, task: Task) {
        let (at_work, home) = (Arc::clone(&self.at_work), Arc::clone(&self.home));
        match task {
            Task::Keep(lease) => {
                self.leases.push(Arc::downgrade(&lease));
                self.lingers = LINGER;
                self.session.spawn(|masters| async move {
                    if keep(masters, Arc::clone(&lease)).await {
                        // Taken up in the next turn of this thread.
                        _ = current().post(Job { home, task: Task::Release(lease) }, Instant::default());
                    }
                    drop(at_work);
                });
            }
            Task::Release(lease) => self.session.spawn(|masters| async move {
                release_lease(&masters, &lease, Waits::ForTurn).await;
                drop(at_work);
            }),
            Task::Settle => {
                let settles = Arc::clone(&self.settles);
                self.session.spawn(|masters| async move {
                    owed::settle(masters).await;
                    drop(settles);
                });
            }
        }
    }

    /// What is to be done to release all leases.
    fn finish(&mut self) -> Vec<Job> {
        let leases = std::mem::take(&mut self.leases).into_iter().filter_map(|lease| lease.upgrade());
        let release = |lease| Job { home: Arc::clone(&self.home), task: Task::Release(lease) };
        leases.filter(|lease| !lease.is_over()).map(release).collect()
    }

    fn turn(&mut self) {
        self.session.turn();
        let has_news = self.home.journal().has_news();
        if has_news && !self.has_told_news {
            self.leases.iter().find_map(Weak::upgrade).inspect(|lease| lease.tell_news());
        }
        self.has_told_news = has_news;
    }

    fn at_work(&self) -> usize {
        Arc::strong_count(&self.at_work) - 1 + self.home.owed().unsent()
    }

    /// Whether there is something to do on it, or will be soon.
    fn goes_on(&mut self, now: Instant, is_finishing: bool) -> bool {
        let at_work = self.at_work();
        if self.leases.len() > 2 * at_work {
            self.leases.retain(|lease| lease.strong_count() > 0);
        }
        if at_work > 0 || (Arc::strong_count(&self.settles) > 1 && !is_finishing) {
            self.idle_since = None;
            return true;
        }
        let idle_since = *self.idle_since.get_or_insert(now);
        !self.is_lent && !is_finishing && now.since(idle_since) < self.lingers
    }

    /// When it is looked at again, if nothing happens.
    fn closes_at(&self) -> Instant {
        self.idle_since.map_or(Instant::from_zero(Duration::MAX), |since| since.after(self.lingers))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::claim::Claim;
    use crate::engine::renew::Listener;
    use crate::lease::{Lease, Ttl};
    use nix::sys::signal::Signal;
    use std::sync::mpsc::{Receiver, Sender, channel};

    const LONG: Duration = Duration::from_secs(60);

    /// Tells what it hears, and does what is to be done then in the thread of the driver.
    struct Reporter {
        told: Sender<&'static str>,
        on_renewal: fn(),
    }

    impl Listener for Reporter {
        fn asked(&self, _: bool, _: Duration) {}

        fn lost(&self, _: Reason) {
            _ = self.told.send("lost");
        }

        fn renew(&self, _: Ttl) {
            _ = self.told.send("renew");
            (self.on_renewal)();
        }

        fn give_back(&self) {
            _ = self.told.send("give back");
        }

        fn news(&self) {}
    }

    /// A lease of no masters: renewals are for its listener to see to, and no one does so.
    fn lease(ttl_ms: u64, on_renewal: fn()) -> (Arc<SharedLease>, Receiver<&'static str>) {
        let (told, heard) = channel();
        let claim = Claim::new(vec![b"r".to_vec()], b"k".to_vec(), Arc::default());
        let (now, ttl) = (BootClock.now(), Ttl { ms: ttl_ms, drift_ms: 2 });
        let mut state = Lease::new(now, ttl, ttl.expires_at(now));
        state.renew(now, None);
        (Arc::new(SharedLease::new(Arc::new(claim), 1, state, Arc::new(Reporter { told, on_renewal }))), heard)
    }

    fn renew(process: &Arc<Process>, lease: &Arc<SharedLease>) {
        let job = Job { home: Arc::clone(Pool::default().here()), task: Task::Keep(Arc::clone(lease)) };
        process.post(job, BootClock.now()).unwrap();
    }

    fn wait_for_end(process: &Process) {
        let mail = locked(&process.mail);
        let (mail, waited) = process.progress.wait_timeout_while(mail, LONG, |mail| mail.alarm.is_some()).unwrap();
        assert!(!waited.timed_out() && mail.jobs.is_empty());
    }

    #[test]
    fn a_lease_is_renewed_and_lost_in_time() {
        let process = Arc::default();
        let (lease, heard) = lease(300, || ());
        renew(&process, &lease);
        assert_eq!(heard.recv_timeout(LONG), Ok("renew"));
        assert_eq!(heard.recv_timeout(LONG), Ok("lost"));
        assert_eq!(lease.with(|state| state.why_not(Instant::default())), Some(Reason::Unavailable));
    }

    #[test]
    fn a_lease_that_is_dropped_is_renewed_no_more_and_the_thread_ends() {
        let process = Arc::default();
        let (lease, heard) = lease(60_000, || ());
        renew(&process, &lease);
        assert!(lease.abandon());
        drop(lease);
        assert!(heard.recv_timeout(LONG).is_err(), "the driver lets go of it");
        wait_for_end(&process);
    }

    #[test]
    fn all_leases_are_lost_if_the_thread_panics_and_the_next_is_renewed() {
        let process = Arc::default();
        let (other, other_heard) = lease(60_000, || ());
        renew(&process, &other);
        let (broken, _heard) = lease(300, || panic!("as planted"));
        renew(&process, &broken);
        assert_eq!(other_heard.recv_timeout(LONG), Ok("lost"));
        let (next, next_heard) = lease(300, || ());
        renew(&process, &next);
        assert_eq!(next_heard.recv_timeout(LONG), Ok("renew"));
    }

    #[test]
    fn threads_may_fork_at_the_same_time() {
        let process: Arc<Process> = Arc::default();
        let (lease, _heard) = lease(60_000, || ());
        renew(&process, &lease);
        let (done, all_done) = channel();
        for _ in 0..4 {
            let (process, done) = (Arc::clone(&process), done.clone());
            thread::spawn(move || {
                for _ in 0..50 {
                    process.pause();
                    process.resume().unwrap();
                }
                done.send(()).unwrap();
            });
        }
        for _ in 0..4 {
            all_done.recv_timeout(LONG).unwrap();
        }
        assert!(locked(&process.thread).is_some(), "it goes on when all have forked");
    }

    fn is_deaf() -> bool {
        let mask = SigSet::thread_get_mask().unwrap();
        [Signal::SIGINT, Signal::SIGTERM, Signal::SIGCHLD, Signal::SIGALRM].iter().all(|&signal| mask.contains(signal))
    }

    #[test]
    fn no_signal_is_delivered_to_the_thread() {
        let process = Arc::default();
        let (lease, heard) = lease(300, || assert!(is_deaf()));
        renew(&process, &lease);
        assert_eq!(heard.recv_timeout(LONG), Ok("renew"));
        assert_eq!(heard.recv_timeout(LONG), Ok("lost"));
        assert_eq!(lease.with(|state| state.why_not(Instant::default())), Some(Reason::Unavailable));
        assert!(!is_deaf(), "the caller's are as before");
    }

    #[test]
    fn the_end_of_the_process_does_not_wait_for_longer_than_it_has() {
        let process = Arc::new(Process::default());
        process.finish(LONG); // there is no thread
        let (lease, _heard) = lease(600_000, || ());
        renew(&process, &lease);
        while locked(&process.mail).wakes_at < BootClock.now() {
            thread::yield_now(); // it has to hear the first alarm of all
        }
        process.finish(LONG);
        wait_for_end(&process);
    }
}
