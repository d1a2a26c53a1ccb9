"""Data: from folders on disk, or from rendered scenes, to named samples in three splits, and from those to batches.

`layouts` is the door. Behind it: `published` (the layouts as rows), `folder` (which row fits), `names` (which image a
text means), `lists` and `splits`, `formats` (points, a file each), `images`, `sensor` (raw values to intensities),
`masks`, `dataset` (the records). `doubts`, `overview` and `sheet` are what `istd data` shows. `scenes` renders, `crops`
makes batches.
"""
