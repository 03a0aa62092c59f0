"""Side-by-side benchmarks of the operators against torchvision, Detectron2 and fvcore.

``python -m benchmarks --help`` says how to run them, ``benchmarks/case.py`` what a case is.
"""
