#!/usr/bin/env bash
# Believed: scikit-learn's normalize and Normalizer bring float16 features, which halve the size of feature files, to
# length 1 within the rounding of float16. They keep the type, and StandardScaler, PCA and the pairwise distances
# compute with more precision than float16 inside.
# So it is: the sum of squares is computed in float16, whose largest number is 65504. Every feature of a length above
# 256, as 4096 activations of about 5 have it, becomes all zeros, and one of values below 0.0001 keeps its length.
# There is no warning, even with warnings as errors: a k-NN classifier of the normalized features guesses one class for
# all. cosine_similarity of the same features is right.
# Version and date: scikit-learn 1.9.1, numpy 2.4.6, 2026-12-01.
# What follows: normalize(features.astype("float32")).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q "scikit-learn==1.9.1" "numpy==2.4.6"
cd "$folder"
"$folder/venv/bin/python" -W error - <<'PYTHON'
import numpy as np
from sklearn.decomposition import PCA
from sklearn.metrics.pairwise import cosine_similarity
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import Normalizer, StandardScaler, normalize

random = np.random.default_rng(0)
labels = np.arange(600) % 3
people = np.maximum(random.standard_normal((3, 4096)), 0) * 6
noise = np.maximum(random.standard_normal((600, 4096)), 0) * 6
features = (people[labels] + noise).astype(np.float16)  # activations after a ReLU


def lengths(values):
    return np.linalg.norm(values.astype(float), axis=1)


before = lengths(features)
print(f"features: values up to {features.max():.0f}, lengths {before.min():.0f} to {before.max():.0f}")
for dtype in (np.float64, np.float32, np.float16):
    units = normalize(features.astype(dtype))
    print(f"{np.dtype(dtype).name}: lengths after normalize {lengths(units).min():.3f} to {lengths(units).max():.3f}")
    assert units.dtype == dtype and np.allclose(lengths(units), 0 if dtype == np.float16 else 1, atol=1e-3)

print("length before: length after normalize, in float16")
one = np.ones((1, 1024))
for length in (0.001, 0.1, 1, 100, 250, 260, 1000):
    feature = (one * length / 32).astype(np.float16)
    after = float(lengths(normalize(feature))[0])
    print(f"  {length:g}: {after:.4f}")
    assert np.isclose(after, {0.001: 0.001, 260: 0, 1000: 0}.get(length, 1), rtol=0.1, atol=1e-5)

exact, half = features[:50].astype(float), features[:50]
assert np.allclose(cosine_similarity(half), cosine_similarity(exact), atol=1e-3)
assert np.allclose(StandardScaler().fit_transform(half), StandardScaler().fit_transform(exact), atol=0.01)
variances = [PCA(3, svd_solver="full").fit(values).explained_variance_ for values in (half, exact)]
assert np.allclose(*variances, rtol=0.01)
print("cosine_similarity, StandardScaler and PCA are right in float16")

accuracies = {}
for dtype in (np.float32, np.float16):
    classifier = make_pipeline(Normalizer(), KNeighborsClassifier(5))
    classifier.fit(features[:300].astype(dtype), labels[:300])
    accuracies[np.dtype(dtype).name] = classifier.score(features[300:].astype(dtype), labels[300:])
print("k-NN of normalized features, accuracy:", {name: f"{value:.2f}" for name, value in accuracies.items()})
assert accuracies["float32"] > 0.99 and abs(accuracies["float16"] - 1 / 3) < 0.01, "float16 is normalized now"
PYTHON
