//! Whether the system gives memory files huge folios: then one write makes up to 512 pages present.

use std::fs;
use std::path::Path;

const THP: &str = "/sys/kernel/mm/transparent_hugepage";

/// Whether a memfd may get a page that nobody has asked for, as far as the system says now. `shmem_enabled`, and that of each size.
pub(super) fn may_be_huge() -> bool {
    may_be_huge_by(Path::new(THP))
}

fn may_be_huge_by(thp: &Path) -> bool {
    // Where nothing of the kernel's memory is shown nobody knows.
    if thp.parent().is_some_and(|mm| !mm.is_dir()) {
        return true;
    }
    let chosen = |path: &Path| {
        let text = fs::read_to_string(path).ok()?;
        Some(text.split_once('[')?.1.split_once(']')?.0.to_owned())
    };
    // Where there is no such file there are no huge folios. "advise" takes an madvise(2) that nobody makes.
    let all = chosen(&thp.join("shmem_enabled"));
    let is_on = |choice: Option<&str>| matches!(choice, Some("always" | "within_size" | "force"));
    if is_on(all.as_deref()) {
        return true;
    }
    let names = fs::read_dir(thp).into_iter().flatten().flatten();
    let sizes = names.filter(|name| name.file_name().as_encoded_bytes().starts_with(b"hugepages-"));
    sizes.map(|size| chosen(&size.path().join("shmem_enabled"))).any(|choice| is_on(choice.as_deref()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_system_says_is_understood() {
        let dir = std::env::temp_dir().join(format!("daxpager-folios-{}", std::process::id()));
        let size = dir.join("hugepages-64kB");
        let says = |all: Option<&str>, one: Option<&str>| {
            let _ = fs::remove_dir_all(&dir);
            fs::create_dir_all(&size).unwrap();
            all.iter().for_each(|text| fs::write(dir.join("shmem_enabled"), text).unwrap());
            one.iter().for_each(|text| fs::write(size.join("shmem_enabled"), text).unwrap());
            may_be_huge_by(&dir)
        };
        let never = "always within_size advise [never] deny force\n";
        let inherit = "always [inherit] within_size advise never\n";
        assert!(!says(None, None));
        assert!(!says(Some(never), Some(inherit)));
        assert!(!says(Some("always within_size [advise] never deny force\n"), Some(inherit)));
        assert!(!says(Some("always within_size advise never [deny] force\n"), None));
        assert!(says(Some("[always] within_size advise never deny force\n"), None));
        assert!(says(Some("always [within_size] advise never deny force\n"), Some(inherit)));
        assert!(says(Some("always within_size advise never deny [force]\n"), None));
        assert!(says(Some(never), Some("[always] inherit within_size advise never\n")));
        fs::remove_dir_all(&dir).unwrap();
        assert!(!may_be_huge_by(&dir), "a kernel without");
        assert!(may_be_huge_by(&dir.join("transparent_hugepage")), "nothing is shown");
    }
}
