//! Control groups in fake trees.

use tempfile::TempDir;

use super::*;

struct Fake(TempDir);

impl Fake {
    fn new(cgroup: &str, mountinfo: &str) -> Self {
        let fake = Self(TempDir::new().unwrap());
        fake.write("proc/self/cgroup", cgroup);
        fake.write("proc/self/mountinfo", mountinfo);
        fake
    }

    fn write(&self, path: &str, content: impl AsRef<[u8]>) {
        let path = self.0.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    }

    fn group_2(&self, folder: &str, limit: &str, usage: u64, inactive: u64) {
        self.write(&format!("{folder}/memory.max"), format!("{limit}\n"));
        self.write(&format!("{folder}/memory.current"), format!("{usage}\n"));
        let stat = format!("anon 5\ninactive_anon 7\ninactive_file {inactive}\nactive_file 9\n");
        self.write(&format!("{folder}/memory.stat"), stat);
    }

    fn group_1(&self, folder: &str, limit: &str, usage: u64, inactive: u64) {
        self.write(
            &format!("{folder}/memory.limit_in_bytes"),
            format!("{limit}\n"),
        );
        self.write(
            &format!("{folder}/memory.usage_in_bytes"),
            format!("{usage}\n"),
        );
        let stat = format!("inactive_file 1\ntotal_inactive_file {inactive}\n");
        self.write(&format!("{folder}/memory.stat"), stat);
    }

    fn find(&self) -> Cgroup {
        Cgroup::find(self.0.path())
    }
}

const MOUNT_2: &str = "30 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n";
const UNLIMITED_1: &str = "9223372036854771712";

#[allow(
    clippy::unnecessary_wraps,
    reason = "it is compared with what may be absent"
)]
fn usage(used_bytes: u64, limit_bytes: u64) -> Option<CgroupUsage> {
    Some(CgroupUsage {
        used_bytes,
        limit_bytes,
    })
}

#[test]
fn version_2_in_a_container_of_its_own() {
    let fake = Fake::new("0::/\n", MOUNT_2);
    fake.group_2("sys/fs/cgroup", "1000", 800, 150);
    let mut cgroup = fake.find();
    assert_eq!(cgroup.limit_bytes(), Some(1_000));
    assert_eq!(cgroup.usage(700), usage(650, 1_000));
    // Not worth the exact figure.
    assert_eq!(cgroup.usage(801), usage(800, 1_000));
    // Files change, and so do limits.
    fake.group_2("sys/fs/cgroup", "2000", 900, 950);
    assert_eq!(cgroup.usage(0), usage(0, 2_000));
    // A look that fails.
    fake.write("sys/fs/cgroup/memory.current", "");
    assert_eq!(cgroup.usage(0), usage(0, 2_000));
    fake.group_2("sys/fs/cgroup", "max", 900, 0);
    assert_eq!(cgroup.usage(0), usage(900, LIMIT_BYTES_MAX));
}

#[test]
fn the_tightest_limit_on_the_way_up_counts() {
    let fake = Fake::new("0::/a/b/c\n", MOUNT_2);
    fake.group_2("sys/fs/cgroup/a/b/c", "3000", 10, 0);
    fake.group_2("sys/fs/cgroup/a/b", "2000", 20, 0);
    fake.group_2("sys/fs/cgroup/a", "max", 30, 0);
    assert_eq!(fake.find().usage(0), usage(20, 2_000));
    // The same at two places: the nearer one.
    fake.group_2("sys/fs/cgroup/a/b/c", "2000", 10, 0);
    assert_eq!(fake.find().usage(0), usage(10, 2_000));
}

#[test]
fn a_group_without_the_controller_has_the_limit_of_the_one_above() {
    let fake = Fake::new("0::/pod/worker\n", MOUNT_2);
    fake.write("sys/fs/cgroup/pod/worker/cgroup.procs", "1\n");
    fake.group_2("sys/fs/cgroup/pod", "5000", 100, 40);
    fake.write("sys/fs/cgroup/memory.stat", "inactive_file 3\n");
    assert_eq!(fake.find().usage(0), usage(60, 5_000));
}

#[test]
fn the_path_of_a_host_in_a_container() {
    let mount = "9 8 0:26 /kube/pod\\0407 /sys/fs/cgroup ro - cgroup2 cgroup rw\n";
    let fake = Fake::new("0::/kube/pod 7/inner\n", mount);
    fake.group_2("sys/fs/cgroup/inner", "700", 7, 0);
    assert_eq!(fake.find().usage(0), usage(7, 700));
    for elsewhere in ["0::/../../other\n", "0::/kube/other\n", "0::/\n"] {
        let fake = Fake::new(elsewhere, mount);
        fake.group_2("sys/fs/cgroup", "600", 6, 0);
        assert_eq!(fake.find().usage(0), usage(6, 600), "{elsewhere}");
    }
}

#[test]
fn version_1_and_both_at_once() {
    let groups = "12:cpu,cpuacct:/x\n4:memory:/docker/abc\n1:name=systemd:/\n0::/system\n";
    let mounts = "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n\
                  32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n\
                  33 31 0:30 /docker/abc /sys/fs/cgroup/memory rw shared:9 - cgroup cgroup rw,memory\n\
                  34 31 0:31 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";
    let fake = Fake::new(groups, mounts);
    fake.group_1("sys/fs/cgroup/memory", "4096", 4_000, 1_000);
    fake.group_2("sys/fs/cgroup/unified/system", "10", 1, 0);
    assert_eq!(fake.find().usage(0), usage(3_000, 4_096));
    let fake = Fake::new(groups, mounts);
    fake.group_1("sys/fs/cgroup/memory", UNLIMITED_1, 4_000, 1_000);
    assert_eq!(
        (fake.find().limit_bytes(), fake.find().usage(0)),
        (None, None)
    );
    // The controller of version 1 is not mounted here: version 2 has it.
    let fake = Fake::new(groups, MOUNT_2);
    fake.group_2("sys/fs/cgroup/system", "50", 5, 0);
    assert_eq!(fake.find().usage(0), usage(5, 50));
}

#[test]
fn without_groups_or_with_nonsense_there_is_no_limit() {
    let empty = TempDir::new().unwrap();
    assert_eq!(Cgroup::find(empty.path()).limit_bytes(), None);
    assert_eq!(Cgroup::find(empty.path()).out_of_memory_count(), None);
    for (cgroup, mounts) in [
        ("", ""),
        ("x\n0::\n::\n", "- - -\n\n - cgroup2\n1 2 3 - cgroup2 a b\n"),
        ("0::/\n", MOUNT_2),
    ] {
        let fake = Fake::new(cgroup, mounts);
        assert_eq!(fake.find().limit_bytes(), None);
    }
    let fake = Fake::new("0::/\n", MOUNT_2);
    fake.group_2("sys/fs/cgroup", "lots", 5, 0);
    assert_eq!(fake.find().limit_bytes(), None);
}

#[test]
fn processes_that_the_system_ended_are_counted() {
    let fake = Fake::new("0::/a\n", MOUNT_2);
    fake.write("proc/vmstat", "pgpgin 5\noom_kill 40\n");
    assert_eq!(fake.find().out_of_memory_count(), Some(40));
    fake.write("sys/fs/cgroup/memory.events", "low 0\noom 3\noom_kill 2\n");
    assert_eq!(fake.find().out_of_memory_count(), Some(2));
    fake.write(
        "sys/fs/cgroup/a/memory.events",
        "oom 9\noom_kill 1\noom_group_kill 8\n",
    );
    assert_eq!(fake.find().out_of_memory_count(), Some(1));
    let mount = "33 31 0:30 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n";
    let fake = Fake::new("4:memory:/\n", mount);
    let control = "oom_kill_disable 0\nunder_oom 0\noom_kill 6\n";
    fake.write("sys/fs/cgroup/memory/memory.oom_control", control);
    assert_eq!(fake.find().out_of_memory_count(), Some(6));
}

#[test]
fn the_real_system_is_understood() {
    let mut cgroup = Cgroup::find(Path::new("/"));
    assert_eq!(cgroup.limit_bytes(), memory_limit_bytes());
    if let Some(usage) = cgroup.usage(0) {
        assert!(usage.used_bytes > 0 && usage.used_bytes <= usage.limit_bytes);
    }
    assert!(cgroup.out_of_memory_count().is_some());
}
