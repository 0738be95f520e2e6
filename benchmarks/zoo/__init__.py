"""Every torchvision model and some of each timm family: is it compiled, exact, and never slower than full inference?"""
