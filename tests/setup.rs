//! `tools/setup` on made-up machines: a folder with a /usr, a PATH of its own, and a package manager that notes what it is
//! asked for.

#[path = "common/guard.rs"]
mod guard;

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

/// The first bytes of a 64-bit and of a 32-bit shared library.
const ELF64: &[u8] = b"\x7fELF\x02\x01\x01\x00";
const ELF32: &[u8] = b"\x7fELF\x01\x01\x01\x00";

/// What the script calls from outside of itself, and the package manager.
const TOOLS: [&str; 6] = ["od", "tr", "id", "env", "cat", "chmod"];

struct Machine {
    root: PathBuf,
    variables: Vec<(&'static str, String)>,
}

/// What came of a run.
#[derive(Debug)]
struct Outcome {
    code: i32,
    /// What the package manager was asked for.
    installed: Option<String>,
    stderr: String,
}

impl Machine {
    /// Debian with a compiler, and no libclang.
    fn new(name: &str) -> Self {
        let root = std::env::temp_dir().join(format!("daxpager-setup-{}-{name}", std::process::id()));
        let machine = Self { root, variables: Vec::new() };
        fs::create_dir_all(machine.root.join("usr/lib/x86_64-linux-gnu")).unwrap();
        fs::create_dir_all(machine.bin()).unwrap();
        for tool in TOOLS {
            let real = ["/usr/bin", "/bin"].map(|dir| Path::new(dir).join(tool));
            let real = real.iter().find(|path| path.exists()).unwrap_or_else(|| panic!("{tool} is missing here"));
            symlink(real, machine.bin().join(tool)).unwrap();
        }
        machine.program("cc", "cat >/dev/null").program("apt-get", "exit 100")
    }

    fn bin(&self) -> PathBuf {
        self.root.join("bin")
    }

    fn file(self, path: &str, bytes: &[u8]) -> Self {
        let path = self.root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
        self
    }

    fn link(self, path: &str, target: &str) -> Self {
        let path = self.root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        symlink(target, path).unwrap();
        self
    }

    /// A program on the PATH.
    fn program(self, name: &str, body: &str) -> Self {
        let path = self.bin().join(name);
        let _ = fs::remove_file(&path);
        fs::write(&path, format!("#!/bin/sh\n{body}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        self
    }

    fn without(self, name: &str) -> Self {
        fs::remove_file(self.bin().join(name)).unwrap();
        self
    }

    /// Sets a variable; `{root}` is where the machine is.
    fn set(mut self, name: &'static str, value: &str) -> Self {
        self.variables.push((name, value.replace("{root}", self.root.to_str().unwrap())));
        self
    }

    /// Runs the script with a package manager that notes what it is asked for, and brings it.
    fn run(self) -> Outcome {
        let install = "echo \"$@\" >\"$DAXPAGER_SETUP_ROOT/installed\"\n\
             printf '#!/bin/sh\\ncat >/dev/null\\n' >\"$DAXPAGER_SETUP_ROOT/bin/cc\"\n\
             chmod +x \"$DAXPAGER_SETUP_ROOT/bin/cc\"\n\
             printf '\\177ELF\\002' >\"$DAXPAGER_SETUP_ROOT/usr/lib/x86_64-linux-gnu/libclang-14.so.1\"";
        let install_path = self.bin().join("install-step").to_str().unwrap().to_owned();
        self.program("install-step", install).set("DAXPAGER_SETUP_INSTALL", &install_path).run_as_it_is()
    }

    fn run_as_it_is(self) -> Outcome {
        let mut command = Command::new("/bin/sh");
        command.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tools/setup")).env_clear();
        command.env("PATH", self.bin()).env("DAXPAGER_SETUP_ROOT", &self.root);
        command.envs(self.variables.iter().map(|(name, value)| (*name, value)));
        let output = guard::output(command);
        Outcome {
            code: output.status.code().unwrap(),
            installed: fs::read_to_string(self.root.join("installed")).ok().map(|text| text.trim().to_owned()),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.root);
    }
}

impl Outcome {
    /// Everything was there.
    #[track_caller]
    fn nothing_to_do(&self) {
        assert!(self.code == 0 && self.installed.is_none() && self.stderr.is_empty(), "{self:?}");
    }

    #[track_caller]
    fn installs(&self, packages: &str) {
        assert!(self.code == 0 && self.installed.as_deref() == Some(packages), "{self:?}");
    }

    /// One line that has `part` in it, and nothing done.
    #[track_caller]
    fn refuses(&self, part: &str) {
        assert!(self.code == 1 && self.installed.is_none(), "{self:?}");
        assert!(self.stderr.contains(part) && self.stderr.trim_end().lines().count() == 1, "{self:?}");
    }
}

#[test]
fn a_proper_libclang_is_taken_wherever_the_build_looks() {
    for path in [
        "usr/lib/llvm-14/lib/libclang.so",
        "usr/lib/llvm-14/lib/libclang.so.1",
        "usr/lib/x86_64-linux-gnu/libclang-14.so.1",
        "usr/lib/x86_64-linux-gnu/libclang-3.9.so",
        "usr/lib64/libclang.so.13",
        "usr/lib/libclang.so",
        "usr/lib32/any/folder/libclang.so",
        "usr/local/llvm15/lib64/libclang.so",
        "usr/local/lib/one/two/libclang.so",
        "usr/local/lib/libclang.so",
    ] {
        Machine::new("proper").file(path, ELF64).run().nothing_to_do();
    }
    let machine = Machine::new("linked").file("usr/lib/llvm-14/lib/libclang-14.so.1", ELF64);
    machine.link("usr/lib/x86_64-linux-gnu/libclang.so", "../llvm-14/lib/libclang-14.so.1").run().nothing_to_do();
}

#[test]
fn nowhere_else() {
    for path in ["usr/lib/a/b/c/libclang.so", "opt/lib/libclang.so", "usr/share/libclang.so", "usr/lib/libclang.a"] {
        Machine::new("elsewhere").file(path, ELF64).run().installs("libclang-dev");
    }
}

/// What LLVM's run-time libraries bring: `libclang-cpp`, under all of its names.
#[test]
fn libclang_cpp_is_no_libclang() {
    let machine = Machine::new("cpp")
        .file("usr/lib/x86_64-linux-gnu/libclang-cpp.so.14", ELF64)
        .file("usr/lib/llvm-14/lib/libclang-cpp.so.14", ELF64)
        .file("usr/lib/llvm-14/lib/libclang-cpp.so", ELF64);
    machine.run().installs("libclang-dev");
}

#[test]
fn what_cannot_be_loaded_does_not_count() {
    let name = "usr/lib/x86_64-linux-gnu/libclang.so";
    Machine::new("dangling").link(name, "libclang-14.so.1").run().installs("libclang-dev");
    Machine::new("32").file(name, ELF32).run().installs("libclang-dev");
    Machine::new("script").file(name, b"/* GNU ld script */\nINPUT(libclang-14.so)\n").run().installs("libclang-dev");
    Machine::new("empty").file(name, b"").run().installs("libclang-dev");
    Machine::new("short").file(name, b"\x7fELF").run().installs("libclang-dev");
    Machine::new("folder").file(&format!("{name}/x"), ELF64).run().installs("libclang-dev");
    // Beside one that does.
    Machine::new("beside").file(name, ELF32).file("usr/lib/libclang.so.1", ELF64).run().nothing_to_do();
}

#[test]
fn libclang_path_counts_alone() {
    let place = "opt/clang/libclang-15.so";
    let at = |value| Machine::new("path").file(place, ELF64).set("LIBCLANG_PATH", value);
    at("{root}/opt/clang").run().nothing_to_do();
    at("{root}/opt/clang/libclang-15.so").run().nothing_to_do();
    // Something proper elsewhere does not help, and neither would installing anything.
    for value in ["{root}/opt", "{root}/opt/clang/libclang.so", "/nonexistent", "", "opt/clang"] {
        let machine = at(value).file("usr/lib/x86_64-linux-gnu/libclang.so", ELF64);
        machine.run().refuses("LIBCLANG_PATH");
    }
    let cpp = Machine::new("path-cpp").file("opt/libclang-cpp.so.14", ELF64);
    cpp.set("LIBCLANG_PATH", "{root}/opt/libclang-cpp.so.14").run().refuses("LIBCLANG_PATH");
}

#[test]
fn llvm_config_and_the_library_paths_are_asked() {
    let config = "echo \"$DAXPAGER_SETUP_ROOT/opt/llvm\"; echo rest";
    let machine = || Machine::new("config").file("opt/llvm/lib64/libclang.so.1", ELF64);
    machine().run().installs("libclang-dev");
    machine().program("llvm-config", config).run().nothing_to_do();
    machine().program("llvm-config-15", config).set("LLVM_CONFIG_PATH", "llvm-config-15").run().nothing_to_do();
    machine().program("llvm-config", "exit 1").run().installs("libclang-dev");
    for variable in ["LD_LIBRARY_PATH", "LIBRARY_PATH"] {
        machine().set(variable, "/nonexistent::{root}/opt/llvm/lib64").run().nothing_to_do();
        machine().set(variable, "/nonexistent:{root}/opt/llvm").run().installs("libclang-dev");
    }
}

#[test]
fn a_compiler_is_installed_too() {
    let libclang = "usr/lib/x86_64-linux-gnu/libclang.so";
    Machine::new("no-cc").without("cc").run().installs("gcc libc6-dev libclang-dev");
    Machine::new("only-cc").without("cc").file(libclang, ELF64).run().installs("gcc libc6-dev");
    // A compiler without the C library's headers, or the kernel's.
    Machine::new("bare-cc").program("cc", "exit 1").file(libclang, ELF64).run().installs("gcc libc6-dev");
}

/// Where nothing can be installed, one line says what to do.
#[test]
fn without_a_package_manager_it_says_what_is_missing() {
    Machine::new("no-apt").without("apt-get").run_as_it_is().refuses("libclang-dev");
    let machine = Machine::new("no-sudo").program("id", "echo 1000");
    machine.run_as_it_is().refuses("apt-get install libclang-dev");
}

#[test]
fn apt_get_is_called_as_root_or_through_sudo() {
    let apt = "echo \"$@\" >>\"$DAXPAGER_SETUP_ROOT/installed\"; [ \"$1\" = update ] || \
               printf '\\177ELF\\002' >\"$DAXPAGER_SETUP_ROOT/usr/lib/libclang.so\"";
    let asked = "update -qq\ninstall -y -qq --no-install-recommends libclang-dev";
    let root = Machine::new("root").program("id", "echo 0").program("apt-get", apt);
    root.run_as_it_is().installs(asked);
    let user = Machine::new("user").program("id", "echo 1000").program("apt-get", apt);
    user.program("sudo", "exec \"$@\"").run_as_it_is().installs(asked);
    // A package manager that fails, and one that brings something else.
    let failing = Machine::new("failing").program("id", "echo 0");
    assert_eq!(failing.run_as_it_is().code, 100);
    let useless = Machine::new("useless").program("id", "echo 0").program("apt-get", ":");
    assert_eq!(useless.run_as_it_is().code, 1);
}
