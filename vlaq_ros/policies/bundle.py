"""
Bundles: a policy as a directory of plain files that is checked before anything is parsed.

    MANIFEST.json      sha256 and size of every other file
    policy.json        PolicySpec: cameras, state, prompt, action units and statistics
    config.json        sizes of the network
    model.safetensors  weights
    golden.json        actions of the full-precision policy for a synthetic observation
    levels.json        errors and boundaries of the levels of a nested store (`policies.levels`)

No pickle, no code, no download. A directory with a missing, unknown or altered file is refused.
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlaq_ros.errors import BundleError, ConfigError
from vlaq_ros.policies.levels import BundleLevels
from vlaq_ros.policies.spec import PolicySpec

FORMAT = 1
MANIFEST = 'MANIFEST.json'
SPEC = 'policy.json'
CONFIG = 'config.json'
WEIGHTS = 'model.safetensors'
GOLDEN = 'golden.json'
LEVELS = 'levels.json'
QUANTIZATION = 'quantization'
REQUIRED = (SPEC, CONFIG, WEIGHTS)
ALLOWED = (*REQUIRED, GOLDEN, LEVELS)
MAX_JSON_BYTES = 4 * 2**20
SHIPPED = Path(__file__).resolve().parent.parent / 'bundles'


@dataclass(frozen=True)
class Bundle:
    """
    A verified bundle directory.

    Attributes:
        path: The directory.
        spec: What the policy expects and delivers.
        config: Sizes of the network, as the family understands them.
        digest: sha256 of the manifest; identifies this bundle.
        quantization: How a packed bundle was made: `origin` (digest of the float bundle),
            `nested`, `method` and its record; None in a bundle of float weights. What is packed is
            said in the weights file (`nn.store_file`).
    """

    path: Path
    spec: PolicySpec
    config: dict[str, Any]
    digest: str
    quantization: dict[str, Any] | None = None

    @property
    def is_packed(self) -> bool:
        """Whether linear layers are stored as codes; their float weights are gone."""
        return self.quantization is not None

    @property
    def is_nested(self) -> bool:
        """Whether the 8-bit channels were made to be read at 4 bits, too."""
        return bool(self.is_packed and self.quantization.get('nested'))

    @property
    def origin(self) -> str | None:
        """Digest of the float bundle that a packed one was made of."""
        return self.quantization.get('origin') if self.is_packed else None

    def golden(self) -> dict[str, Any] | None:
        """Return the golden actions, None when the bundle ships none."""
        path = self.path / GOLDEN
        return _read_json(path) if path.exists() else None

    def levels(self) -> BundleLevels | None:
        """
        Return what a calibration measured of its levels, None when nobody has.

        Raises:
            BundleError: The file is of another format, or something in it is missing, unknown or
                impossible; all of it is listed.
        """
        path = self.path / LEVELS
        if not path.exists():
            return None
        try:
            return BundleLevels.from_json(_read_json(path), self.spec.action, self.spec.heads)
        except ConfigError as error:
            lines = str(error).splitlines()
            raise BundleError('\n'.join(f'{path}: {line}' for line in lines)) from error


def resolve(bundle: str | Path) -> Path:
    """
    Return the directory of `bundle`: a path, or the name of a shipped bundle.

    Raises:
        BundleError: There is no such directory; the message lists the shipped names.
    """
    path = Path(bundle).expanduser()
    if path.is_dir():
        return path
    shipped = SHIPPED / str(bundle)
    if str(bundle) and Path(bundle).name == str(bundle) and shipped.is_dir():
        return shipped
    names = sorted(p.name for p in SHIPPED.glob('*') if p.is_dir())
    raise BundleError(
        f'no bundle at {str(bundle)!r}: it is neither a directory nor a shipped bundle '
        f'({", ".join(names) or "none is shipped"})'
    )


def open_bundle(bundle: str | Path) -> Bundle:
    """
    Verify a bundle directory against its manifest and read its spec.

    Raises:
        BundleError: Anything is missing, unknown, altered or inconsistent; all files are listed.
    """
    path = resolve(bundle)
    manifest_path = path / MANIFEST
    if not manifest_path.is_file():
        raise BundleError(f'{path} has no {MANIFEST}: not a bundle, or not completely copied')
    manifest = _read_json(manifest_path)
    if manifest.get('format') != FORMAT:
        raise BundleError(
            f'{manifest_path} has format {manifest.get("format")!r}; this version reads {FORMAT}'
        )
    problems = list(_problems(path, manifest.get('files')))
    if problems:
        raise BundleError(f'{path} does not match its {MANIFEST}:\n  ' + '\n  '.join(problems))
    spec = PolicySpec.from_json(_read_json(path / SPEC))
    config = _read_json(path / CONFIG)
    quantization = config.pop(QUANTIZATION, None)
    if quantization is not None and not isinstance(quantization, dict):
        raise BundleError(f'{path / CONFIG}: {QUANTIZATION} must be a table')
    return Bundle(path, spec, config, _sha256(manifest_path), quantization)


def write_bundle(
    path: Path,
    spec: PolicySpec,
    config: dict[str, Any],
    weights: Mapping[str, Any] | Callable[[Path], None],
    golden: dict[str, Any] | None = None,
    levels: dict[str, Any] | None = None,
) -> None:
    """
    Write a bundle next to `path` and move it into place: `path` is never half-written.

    Args:
        path: Directory to create or replace.
        spec: Goes to `policy.json`.
        config: Goes to `config.json`.
        weights: Name -> tensor, or a function that writes the weights to a path.
        golden: Goes to `golden.json` when given.
        levels: Goes to `levels.json` when given.
    """
    from safetensors.torch import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f'.{path.name}.', dir=path.parent))
    try:
        _write_json(partial / SPEC, spec.to_json())
        _write_json(partial / CONFIG, config)
        if callable(weights):
            weights(partial / WEIGHTS)
        else:
            save_file(weights, partial / WEIGHTS)
        if golden is not None:
            _write_json(partial / GOLDEN, golden)
        if levels is not None:
            _write_json(partial / LEVELS, levels)
        files = {
            p.name: {'sha256': _sha256(p), 'bytes': p.stat().st_size}
            for p in sorted(partial.iterdir())
        }
        _write_json(partial / MANIFEST, {'format': FORMAT, 'files': files})
        for file in (partial, *partial.iterdir()):
            file.chmod(0o755 if file.is_dir() else 0o644)
        if path.exists():
            shutil.rmtree(path)
        os.replace(partial, path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _problems(path: Path, files: Any):
    if not isinstance(files, dict):
        yield 'files: not a table'
        return
    for name in REQUIRED:
        if name not in files:
            yield f'{name}: not listed'
    for name, entry in files.items():
        file = path / name
        if name not in ALLOWED:
            yield f'{name}: a bundle has no such file'
        elif not file.is_file() or file.is_symlink():
            yield f'{name}: missing'
        elif file.stat().st_size != entry.get('bytes'):
            yield f'{name}: {file.stat().st_size} bytes, expected {entry.get("bytes")}'
        elif _sha256(file) != entry.get('sha256'):
            yield f'{name}: sha256 differs, the file was altered or damaged'
    for file in sorted(path.iterdir()):
        if file.name != MANIFEST and file.name not in files:
            yield f'{file.name}: not listed'


def _sha256(path: Path) -> str:
    with path.open('rb') as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _read_json(path: Path) -> dict[str, Any]:
    if path.stat().st_size > MAX_JSON_BYTES:
        raise BundleError(f'{path} has {path.stat().st_size} bytes; at most {MAX_JSON_BYTES}')
    try:
        values = json.loads(path.read_text(encoding='utf-8'))
    except ValueError as error:
        raise BundleError(f'{path} is not JSON: {error}') from error
    if not isinstance(values, dict):
        raise BundleError(f'{path} must hold a JSON object')
    return values


def _write_json(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=1) + '\n', encoding='utf-8')
