"""What a retriever becomes for other programs: a stock model, ONNX, a bundle without torch.

What other folders take:
    bundle.load_bundle: What searches as the exported retriever did; it imports no torch.
    bundle.Bundle: A searcher that lies in a bundle's files; it cannot be trained, changed or saved.
    stock.check_export: Refuse a format that is not known, one that cannot be had in this precision, and a folder
        that is not free.
    stock.export: Write the encoder with its adapter folded in, the documents, their vectors and a README into a new
        folder.
"""
