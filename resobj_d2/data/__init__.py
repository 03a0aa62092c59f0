"""Datasets: the generated scenes, and datasets registered from the config.

Importing this package imports nothing else: :mod:`resobj_d2.data.scenes` needs numpy and
Pillow alone, :mod:`resobj_d2.data.register` needs Detectron2.
"""
