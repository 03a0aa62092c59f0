"""Side-by-side benchmarks of the operators against torchvision, Detectron2 and fvcore.

``python -m benchmarks --help`` shows how to run them; ``benchmarks/case.py`` defines a case.
"""
