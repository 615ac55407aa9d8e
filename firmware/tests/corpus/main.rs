//! Replays the corpus of the fuzz targets: it reaches every way in which parsing can end, so the
//! fuzzer starts from all of them and loses none unseen; and no input takes memory beyond its bound.

#[cfg(test)]
#[path = "../../../tests/fuzz/src/firmware/mod.rs"]
#[expect(
    clippy::cast_possible_truncation,
    reason = "made for fuzz targets, which cut numbers on purpose"
)]
mod firmware;
#[cfg(test)]
mod heap;
#[cfg(test)]
#[expect(
    clippy::cast_possible_truncation,
    reason = "numbers of synthetic files are small"
)]
mod memory;

/// The files of a target's corpus, by name.
#[cfg(test)]
fn corpus_of(target: &str) -> Vec<(String, Vec<u8>)> {
    use std::fs;

    let here = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let folder = here.join("../tests/fuzz/corpus").join(target);
    let files = fs::read_dir(folder).expect("the corpus is committed");
    let read = |file: fs::DirEntry| {
        let name = file.file_name().to_string_lossy().into_owned();
        (name, fs::read(file.path()).unwrap())
    };
    files.map(|file| read(file.unwrap())).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use arbitrary::{Result, Unstructured};
    use tdvmm_arch::GpaRange;
    use tdvmm_firmware::fwcfg::contents;
    use tdvmm_firmware::hob::{self, Extensions};
    use tdvmm_firmware::image::{Contents, Image};
    use tdvmm_firmware::td_shim::direct_boot;
    use tdvmm_firmware::varstore::{VariableStore, replace_variables};

    use super::corpus_of;
    use super::firmware::reasons::{
        FW_CFG, HOB, IMAGE, KERNEL, REGIONS, REPLACE, STORE, of_fw_cfg, of_hob, of_image,
        of_kernel, of_regions, of_replace, of_store,
    };
    use super::firmware::{boot, image, store};

    /// Asserts that the files of a target's corpus, made into inputs, end in all of these ways.
    fn assert_reached<T>(
        target: &str,
        build: fn(&mut Unstructured<'_>) -> Result<T>,
        end: impl Fn(&T) -> Vec<&'static str>,
        all: &[&'static str],
    ) {
        let reached: BTreeSet<_> = corpus_of(target)
            .iter()
            .filter_map(|(_, bytes)| build(&mut Unstructured::new(bytes)).ok())
            .flat_map(|input| end(&input))
            .collect();
        let missing: Vec<_> = all.iter().filter(|name| !reached.contains(*name)).collect();
        assert!(missing.is_empty(), "not reached: {missing:?}");
    }

    #[test]
    fn corpus_of_images_reaches_every_refusal() {
        let end = |file: &Vec<u8>| vec![of_image(&Image::parse(file))];
        assert_reached("firmware_image", image::build, end, IMAGE);
    }

    #[test]
    fn corpus_of_images_reaches_refusals_of_hand_off_blocks() {
        let end = |file: &Vec<u8>| {
            let ram = [GpaRange::constant(0, 0x8000_0000)];
            let build = |image| hob::build(&image, &ram, 4, &Extensions::default());
            let made = Image::parse(file).map(build);
            made.iter().map(of_hob).collect()
        };
        assert_reached("firmware_image", image::build, end, HOB);
    }

    #[test]
    fn corpus_of_variables_reaches_every_refusal() {
        let end = |file: &Vec<u8>| vec![of_store(&VariableStore::parse(file))];
        assert_reached("firmware_variables", store::build, end, STORE);
    }

    #[test]
    fn corpus_of_variables_reaches_every_refusal_of_an_image_to_take_them() {
        let end = |file: &Vec<u8>| {
            let replace = |mut image: Vec<u8>| of_replace(&replace_variables(&mut image, file));
            image::with_places_for(file).map(replace).to_vec()
        };
        assert_reached("firmware_variables", store::build, end, REPLACE);
    }

    #[test]
    fn corpus_of_boots_reaches_every_refusal_of_a_kernel() {
        let end = |boot: &boot::Boot| {
            let image = Image::parse(&boot.image).unwrap();
            let initramfs = boot.initramfs.as_deref();
            let made = direct_boot(&image, &boot.kernel, &boot.cmdline, initramfs);
            vec![of_kernel(&made)]
        };
        assert_reached("firmware_kernel", boot::build, end, KERNEL);
    }

    #[test]
    fn corpus_of_boots_reaches_every_refusal_of_contents() {
        let end = |boot: &boot::Boot| {
            let given = Contents {
                payload: Some(&boot.kernel),
                payload_param: Some(boot.cmdline.as_bytes()),
                ..Contents::default()
            };
            let image = Image::parse(&boot.image).unwrap();
            vec![of_regions(&image.regions(&given))]
        };
        assert_reached("firmware_kernel", boot::build, end, REGIONS);
    }

    #[test]
    fn corpus_of_boots_reaches_refusals_of_fw_cfg() {
        let end = |boot: &boot::Boot| vec![of_fw_cfg(&contents(&boot.fw_cfg(&boot.kernel)))];
        assert_reached("firmware_kernel", boot::build, end, FW_CFG);
    }
}
